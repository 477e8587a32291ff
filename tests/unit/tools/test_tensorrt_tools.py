"""The tools behind `make test-tensorrt`, as far as they need nothing of NVIDIA's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.tensorrt.names import defined_in, uses_in
from tools.tensorrt.stubs import make_stubs, undefined_functions
from tools.tensorrt.wheels import UnobtainableError, Wheel, unpacked

CODE = """
import tensorrt as rt
import logging

class Engine:
    def __init__(self, trt, plan):
        self._trt = trt
        self._runtime = trt.Runtime(trt.Logger())
        self.limit: int = 0
        logging.getLogger("x")

    def run(self):
        if hasattr(self._runtime, "max_threads"):
            pass
        kind = self._trt.DataType.HALF
        self.engine.create_execution_context().execute_async_v3(0)
        return rt.__version__
"""


def test_names_are_found_by_their_way_to_the_package() -> None:
    uses = uses_in([("code.py", CODE), ("other.py", "def f(x):\n    return x.BuilderFlag.FP16\n")])
    assert set(uses.chains) == {"Runtime", "Logger", "DataType.HALF", "__version__"}
    assert uses.chains["DataType.HALF"] == "code.py:15"
    assert {"engine", "create_execution_context", "execute_async_v3"} <= uses.members.keys()
    assert "getLogger" not in uses.members, "of another module"
    assert "BuilderFlag" not in uses.members, "a file without the package"
    assert set(uses.optional) == {"max_threads"}
    assert {"Engine", "run", "_runtime", "limit"} <= defined_in([("code.py", CODE)])


def test_of_an_extensions_undefined_names_tensorrts_are_stubbed() -> None:
    listing = """
                     U createInferBuilder_INTERNAL
                     U getPluginRegistry
                     U PyLong_AsLong
                     U memcpy@GLIBC_2.14
                     w __gmon_start__
    """
    assert undefined_functions(listing) == ["createInferBuilder_INTERNAL", "getPluginRegistry"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_stubs_satisfy_an_extension_that_wants_a_library_of_nvidia(tmp_path: Path) -> None:
    """A library in place of the bindings: it calls into libnvinfer, which exists nowhere."""
    source = tmp_path / "user.c"
    source.write_text(
        "void *createInferBuilder_INTERNAL(void);\n"
        "int user(void) { return createInferBuilder_INTERNAL() == 0; }\n"
    )
    wanted, user = tmp_path / "libnvinfer.so.99", tmp_path / "user.so"
    for arguments in (
        ["-x", "c", "/dev/null", "-Wl,-soname,libnvinfer.so.99", "-o", str(wanted)],
        [str(source), "-Wl,--no-as-needed", str(wanted), "-o", str(user)],
    ):
        subprocess.run(["gcc", "-shared", "-fPIC", *arguments], check=True)
    wanted.unlink()
    stubs = make_stubs(user, tmp_path / "stubs")
    assert [p.name for p in stubs.glob("*.so*")] == ["libnvinfer.so.99"]
    ctypes.CDLL(str(stubs / "libnvinfer.so.99"), mode=ctypes.RTLD_GLOBAL)
    assert ctypes.CDLL(str(user)).user() == 1


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip takes packages from a folder here, so that no network is needed."""
    made = tmp_path / "index" / "tiny_thing-1.0-py3-none-any.whl"
    made.parent.mkdir()
    script = (
        "import zipfile, sys\n"
        "with zipfile.ZipFile(sys.argv[1], 'w') as z:\n"
        "    z.writestr('tiny_thing.py', '')\n"
        "    z.writestr('tiny_thing-1.0.dist-info/METADATA',"
        " 'Metadata-Version: 2.1\\nName: tiny-thing\\nVersion: 1.0\\n')\n"
        "    z.writestr('tiny_thing-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\n')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(made)], check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    cache = tmp_path / "cache"
    wrong = Wheel("1", "tiny-thing", "1.0", ("0" * 64,))
    with pytest.raises(UnobtainableError, match=r"tiny-thing-1\.0"):
        unpacked(wrong, cache)
    assert not list(cache.iterdir())
    digest = subprocess.run(["sha256sum", made], capture_output=True, text=True, check=True).stdout
    place = unpacked(Wheel("1", "tiny-thing", "1.0", (digest.split()[0],)), cache)
    assert (place / "tiny_thing.py").is_file()
