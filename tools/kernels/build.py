"""Builds CUDA sources: host libraries by g++, PTX and cubins by nvcc, cached below build/kernels.

A result is named by the hash of what it was made from: the sources and every file they include,
the flags, the compiler's version. So two processes may build the same at once, and nothing is ever
stale.

A library built with a sanitizer is loaded by a Python process that was started with
`sanitizer_environment`; the arrays that it passes are then watched too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "kernels"
KERNELS = ROOT / "kernels"
SIMT = KERNELS / "simt"

Sanitizer = Literal["address", "thread"]
Defines = Mapping[str, str | int]

RUNTIME = tuple(SIMT / name for name in ("host.cpp", "block.cpp", "collectives.cpp", "fiber.cpp"))
_INCLUDES = (KERNELS, SIMT)
_QUOTED_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_TIMEOUT_S = 600

# CUDA's unroll pragmas are foreign to g++. Kernels view bytes as other types, as CUDA allows.
_HOST_FLAGS = (
    "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-strict-aliasing",
    "-ffp-contract=off",
)  # fmt: skip
_DEVICE_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-Wall,-Wextra")


class MissingToolError(RuntimeError):
    """A compiler is not installed."""


class BuildError(RuntimeError):
    """A compiler refused a source; with what it said."""


def find_nvcc() -> Path:
    """The CUDA compiler.

    Raises:
        MissingToolError: neither on PATH nor below /usr/local/cuda.
    """
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise MissingToolError(
            "nvcc is neither on PATH nor in /usr/local/cuda/bin: install CUDA 12.6 or later"
        )
    return Path(found)


def find_gxx() -> Path:
    """The host's C++ compiler.

    Raises:
        MissingToolError: no g++ on PATH.
    """
    found = shutil.which("g++")
    if found is None:
        raise MissingToolError("g++ is not on PATH: install it, for example by `apt install g++`")
    return Path(found)


def host_library(
    sources: Iterable[Path],
    *,
    defines: Defines | None = None,
    sanitizer: Sanitizer | None = None,
    includes: Sequence[Path] = (),
    quick: bool = False,
    cache: Path = CACHE,
) -> Path:
    """A shared library of `.cu` and `.cpp` sources and the emulation they run on.

    Args:
        sources: compiled as C++.
        defines: macros; those that start with SIMT_ hold for the emulation too.
        sanitizer: "address" (with undefined behaviour) or "thread"; see `sanitizer_environment`.
        includes: folders to search before kernels/ and kernels/simt/.
        quick: without warnings and optimisation of the sources: built in a third of the time,
            four times slower.
        cache: where results are kept.

    Raises:
        MissingToolError: no g++.
        BuildError: a source does not compile without warnings, or does not link.
    """
    folders = (*includes, *_INCLUDES)
    macros = _macros(defines)
    flags = [*_kernel_flags(sanitizer), *(["-O0", "-w"] if quick else []), *macros]
    objects = [_object(source, flags, folders, cache) for source in sources]
    # The emulation tells ThreadSanitizer what to watch; its own bookkeeping must not be.
    own = [*_runtime_flags(sanitizer), *(macro for macro in macros if macro.startswith("-DSIMT_"))]
    objects += [_object(source, own, _INCLUDES, cache) for source in RUNTIME]
    link = ["-shared", *([f"-fsanitize={_SANITIZERS[sanitizer]}"] if sanitizer else [])]
    key = _key([str(find_gxx()), *link, *(built.name for built in objects)])
    return _cached(
        cache / f"lib-{key}.so", [str(find_gxx()), *link, *map(str, objects)], "a host library"
    )


def sanitizer_environment(sanitizer: Sanitizer) -> dict[str, str]:
    """Environment variables for a process that loads a library built with this sanitizer.

    The process ends with status 66 at the first finding, which it prints to standard error.
    """
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    done = subprocess.run(
        [find_gxx(), f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
    )
    return {
        "LD_PRELOAD": done.stdout.strip(),
        # Python itself leaks at exit.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    }


def ptx(
    source: Path,
    arch: str = "sm_87",
    defines: Defines | None = None,
    *,
    includes: Sequence[Path] = (),
    line_info: bool = False,
    cache: Path = CACHE,
) -> Path:
    """The PTX that nvcc makes of a `.cu` file, as text.

    Args:
        source: one file.
        arch: "sm_87" and the like.
        defines: macros.
        includes: folders to search before kernels/ and kernels/simt/.
        line_info: with `.loc` directives that name the source's lines.
        cache: where results are kept.

    Raises:
        MissingToolError: no nvcc.
        BuildError: it does not compile.
    """
    flags = ["-ptx", f"-arch={arch}", *(["-lineinfo"] if line_info else [])]
    return _device(source, flags, "ptx", defines=defines, includes=includes, cache=cache)


def cubin(
    source: Path,
    arch: str = "sm_87",
    defines: Defines | None = None,
    *,
    includes: Sequence[Path] = (),
    cache: Path = CACHE,
) -> Path:
    """The machine code that nvcc makes of a `.cu` file; arguments and errors as of `ptx`."""
    flags = ["-cubin", f"-arch={arch}"]
    return _device(source, flags, "cubin", defines=defines, includes=includes, cache=cache)


def gpu_library(
    sources: Iterable[Path],
    arch: str = "native",
    defines: Defines | None = None,
    *,
    cache: Path = CACHE,
) -> Path:
    """A shared library of `.cu` and `.cpp` sources for a GPU, with CUDA's runtime in it.

    Args:
        sources: as nvcc takes them.
        arch: "sm_87" and the like, or "native": the GPU of this machine.
        defines: macros.
        cache: where results are kept.

    Raises:
        MissingToolError: no nvcc.
        BuildError: a source does not compile, or does not link.
    """
    flags = ["-c", f"-arch={arch}", "-Xcompiler", "-fPIC"]
    objects = [
        _device(source, flags, f"{arch}.o", defines=defines, includes=(), cache=cache)
        for source in sources
    ]
    compiler = find_nvcc()
    link = ["-shared", f"-arch={arch}"]
    key = _key([_version(compiler), *link, *(built.name for built in objects)])
    return _cached(
        cache / f"gpu-{key}.so", [str(compiler), *link, *map(str, objects)], "a GPU library"
    )


@dataclass(frozen=True, slots=True)
class Resources:
    """What ptxas says of one kernel; bytes per thread, but `shared` per block and static only."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def ptxas_report(
    source: Path,
    arch: str = "sm_87",
    defines: Defines | None = None,
    *,
    includes: Sequence[Path] = (),
    cache: Path = CACHE,
) -> dict[str, Resources]:
    """Registers and spills by kernel; arguments and errors as of `ptx`."""
    flags = ["-cubin", f"-arch={arch}", "-Xptxas", "-v"]
    built = _device(source, flags, "report.cubin", defines=defines, includes=includes, cache=cache)
    return parse_ptxas(_log_of(built).read_text())


_PTXAS_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def parse_ptxas(text: str) -> dict[str, Resources]:
    """What `ptxas -v` printed, by kernel."""
    found = {}
    for match in _PTXAS_KERNEL.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found[match["name"]] = Resources(
            registers=int(match["registers"]),
            spill_stores=int(match["stores"]),
            spill_loads=int(match["loads"]),
            stack=int(match["stack"]),
            shared=int(shared[1]) if shared else 0,
        )
    return found


_SANITIZERS = {"address": "address,undefined", "thread": "thread"}


def _macros(defines: Defines | None) -> list[str]:
    return [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]


def _kernel_flags(sanitizer: Sanitizer | None) -> list[str]:
    if sanitizer is None:
        return [*_HOST_FLAGS, "-O2", "-Werror"]
    return [
        *_HOST_FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
        f"-fsanitize={_SANITIZERS[sanitizer]}",
    ]  # fmt: skip


def _runtime_flags(sanitizer: Sanitizer | None) -> list[str]:
    if sanitizer == "thread":
        return [*_HOST_FLAGS, "-O2", "-g", "-DSIMT_THREAD_SANITIZER"]
    return _kernel_flags(sanitizer)


def _object(source: Path, flags: Sequence[str], folders: Sequence[Path], cache: Path) -> Path:
    compiler = find_gxx()
    key = _key([_version(compiler), *flags], _closure(source, folders))
    command = [
        str(compiler), *flags, *(f"-I{folder}" for folder in folders), "-x", "c++", "-c",
        str(source),
    ]  # fmt: skip
    return _cached(cache / f"{source.stem}-{key}.o", command, str(source))


def _device(
    source: Path,
    flags: Sequence[str],
    suffix: str,
    *,
    defines: Defines | None,
    includes: Sequence[Path],
    cache: Path,
) -> Path:
    compiler = find_nvcc()
    folders = (*includes, *_INCLUDES)
    every = [*_DEVICE_FLAGS, *flags, *_macros(defines)]
    key = _key([_version(compiler), *every], _closure(source, folders))
    command = [str(compiler), *every, *(f"-I{folder}" for folder in folders), str(source)]
    return _cached(cache / f"{source.stem}-{key}.{suffix}", command, str(source))


def _cached(result: Path, command: Sequence[str], what: str) -> Path:
    """Runs `command -o result`, unless that was done before; the log lies beside the result."""
    if result.exists():
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        made = Path(folder) / result.name
        done = subprocess.run(
            [*command, "-o", str(made)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BuildError(f"{what} does not build:\n{done.stdout.strip()}")
        log = _log_of(made)
        log.write_text(done.stdout)
        log.replace(_log_of(result))
        made.replace(result)
    return result


def _log_of(result: Path) -> Path:
    return result.with_name(result.name + ".log")


def _key(words: Iterable[str], contents: Iterable[bytes] = ()) -> str:
    digest = hashlib.sha256()
    for part in (*(word.encode() for word in words), *contents):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]


@functools.cache
def _version(compiler: Path) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout


def _closure(source: Path, folders: Sequence[Path]) -> list[bytes]:
    """A source and all that it includes by `#include "..."`, each once, in order of appearance."""
    seen: dict[Path, bytes] = {}

    def visit(path: Path) -> None:
        path = path.resolve()
        if path in seen:
            return
        seen[path] = path.read_bytes()
        for name in _QUOTED_INCLUDE.findall(seen[path]):
            for folder in (path.parent, *folders):
                included = folder / os.fsdecode(name)
                if included.is_file():
                    visit(included)
                    break

    visit(source)
    return list(seen.values())
