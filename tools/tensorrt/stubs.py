"""Empty libraries in place of libnvinfer and its kin, so that the real bindings can be imported.

NVIDIA's bindings (a Python extension) link against libraries that are not in the package index.
Their classes, enums and flags live in the extension itself; the libraries only hand out builders
and runtimes. Functions that return null in their place satisfy the loader: names are then real,
and nothing can be built.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

# Of the undefined names, those that TensorRT's own libraries define.
_OURS = re.compile(r"infer|nvonnx|pluginregistry", re.IGNORECASE)
_NEEDED = re.compile(r"\(NEEDED\).*\[(libnv[^\]]+)\]")


class NoCompilerError(Exception):
    """gcc, or a tool of binutils, is missing."""


def find_tool(name: str) -> str:
    """Full path of gcc, nm or readelf.

    Raises:
        NoCompilerError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise NoCompilerError(f"{name} is not installed (apt-get install gcc)")
    return path


def needed_libraries(readelf: str) -> list[str]:
    """NVIDIA's libraries in the output of `readelf --dynamic`."""
    return _NEEDED.findall(readelf)


def undefined_functions(nm: str) -> list[str]:
    """TensorRT's functions in the output of `nm --dynamic --undefined-only`."""
    names = {line.split()[-1] for line in nm.splitlines() if line.split()[:1] == ["U"]}
    return sorted(name for name in names if _OURS.search(name))


def stub_source(functions: list[str]) -> str:
    """C in which each function returns null, which is also 0 and false."""
    return "".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions)


def make_stubs(extension: Path, folder: Path) -> Path:
    """Compiles the libraries that an extension wants into a folder, for LD_LIBRARY_PATH.

    Every library holds all functions: the loader takes the first that it finds.

    Raises:
        NoCompilerError: see `find_tool`.
        subprocess.CalledProcessError: the compiler failed.
    """
    libraries = needed_libraries(_run("readelf", "--dynamic", str(extension)))
    functions = undefined_functions(_run("nm", "--dynamic", "--undefined-only", str(extension)))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text(stub_source(functions), encoding="ascii")
    for library in libraries:
        _run(
            "gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}",
            "-o", str(folder / library), str(source),
        )  # fmt: skip
    return folder


def _run(tool: str, *arguments: str) -> str:
    command = [find_tool(tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
