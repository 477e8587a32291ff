"""Builds the TensorRT plugin in its forms, for tests, below build/kernels/plugin.

    python -m tools.kernels.plugin    # every form that can be built here, and the walk through it

| form | what it is |
|---|---|
| `emulated` | no CUDA: TensorRT's side is real, the kernels run on the CPU |
| `sanitized` | the same under AddressSanitizer and UndefinedBehaviorSanitizer |
| `cuda` | what a Jetson loads, but for this machine's CPU |
| `aarch64` | what a Jetson loads; its walk runs under qemu |

CMake does the work (kernels/CMakeLists.txt); here is only what it must be told on a machine that
has neither TensorRT nor CUDA's packages for aarch64: headers and CUDA's runtime come from wheels.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.kernels.build import CACHE, KERNELS, BuildError, MissingToolError, find_gxx, find_nvcc
from tools.tensorrt.wheels import UnobtainableError, pinned, unpacked

PLUGIN = CACHE / "plugin"
FORMS = ("emulated", "sanitized", "cuda", "aarch64")
_TIMEOUT_S = 1800
_QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
_CROSS_COMPILER = "aarch64-linux-gnu-g++"
# One head dim is enough for all that is tested here, and compiles in a tenth of the time.
_QUICK = "-DMETAL_EDGE_HEAD_DIMS=32"


@dataclass(frozen=True, slots=True)
class Built:
    """One form of the plugin, built."""

    form: str
    folder: Path

    @property
    def library(self) -> Path:
        """The plugin."""
        return self.folder / "libmetal_edge_plugin.so"

    def walk(self) -> subprocess.CompletedProcess[str]:
        """Walks through the plugin; a failed step gives status 1 and is told on standard output."""
        command = [str(self.folder / "plugin_walk"), str(self.library)]
        command += ["--emulated"] if self.form in {"emulated", "sanitized"} else []
        command = [*(_QEMU if self.form == "aarch64" else ()), *command]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )


def headers() -> Path:
    """TensorRT's C++ headers: of $TENSORRT_INCLUDE_DIR, or from a wheel.

    Raises:
        UnobtainableError: the wheel cannot be had.
    """
    given = os.environ.get("TENSORRT_INCLUDE_DIR")
    if given:
        return Path(given)
    (wheel,) = pinned("headers")
    return unpacked(wheel) / "kernel_lens" / "include" / "tensorrt"


def build(
    form: str,
    *,
    source: Path = KERNELS,
    folder: Path | None = None,
    options: Sequence[str] = (),
) -> Built:
    """Builds one form; what was built before is brought up to date.

    Args:
        form: see the module's table.
        source: of kernels/; a changed copy shows whether the walk would notice.
        folder: where to; default: a folder of the form's name.
        options: more of CMake's -D.

    Raises:
        MissingToolError: a compiler, CMake or qemu is not installed.
        UnobtainableError: headers or CUDA's runtime cannot be had.
        BuildError: CMake or a compiler failed; with what it said.
    """
    place = folder or PLUGIN / form
    configure = [
        _tool("cmake", "cmake"), "-S", str(source), "-B", str(place), _QUICK,
        f"-DTENSORRT_INCLUDE_DIR={headers()}", *_options(form, source), *options,
    ]  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        _run(configure)
        _run(["cmake", "--build", str(place), "--parallel", "2"])
    return Built(form, place)


def _options(form: str, source: Path) -> list[str]:
    match form:
        case "emulated":
            find_gxx()
            return ["-DMETAL_EDGE_CUDA=OFF"]
        case "sanitized":
            find_gxx()
            return [
                "-DMETAL_EDGE_CUDA=OFF", "-DMETAL_EDGE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug",
            ]  # fmt: skip
        case "cuda":
            find_gxx()
            return [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
        case "aarch64":
            _tool(_CROSS_COMPILER, "g++-aarch64-linux-gnu")
            _tool(_QEMU[0], "qemu-user")
            toolchain = source / "plugin" / "aarch64-linux-gnu.cmake"
            return [
                f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
                f"-DCMAKE_CUDA_COMPILER={cross_toolkit() / 'bin' / 'nvcc'}",
                "-DCMAKE_CUDA_ARCHITECTURES=87-real",
            ]
        case _:
            raise ValueError(f"no form of the plugin is called {form!r}; there are {FORMS}")


def cross_toolkit() -> Path:
    """A CUDA toolkit for aarch64, of this machine's compiler and the runtime in a wheel.

    It has the shape that NVIDIA's cross packages give a toolkit: headers and libraries of the
    target below targets/aarch64-linux. nvcc looks for them beside itself: it is copied, not linked.
    """
    dry = subprocess.run(
        [find_nvcc(), "--dryrun", "-c", "any.cu"], capture_output=True, text=True, check=False
    )
    found = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    if found is None:
        raise BuildError(f"nvcc does not say where its toolkit is:\n{dry.stderr}")
    toolkit = Path(found[1]).resolve()
    (wheel,) = pinned("cudart")
    place = PLUGIN / "toolkit-aarch64"
    if (place / "complete").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    (place / "bin").mkdir(parents=True)
    for tool in (toolkit / "bin").iterdir():
        (place / "bin" / tool.name).symlink_to(tool)
    for name in ("nvcc", "nvcc.profile"):
        (place / "bin" / name).unlink()
        shutil.copy(toolkit / "bin" / name, place / "bin" / name)
    (place / "nvvm").symlink_to(toolkit / "nvvm")
    target = place / "targets" / "aarch64-linux"
    target.mkdir(parents=True)
    (target / "include").symlink_to(toolkit / "include")
    (target / "lib").symlink_to(next(unpacked(wheel).glob("nvidia/*/lib")))
    (place / "complete").touch()
    return place


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(
            f"{name} is not on PATH: install it, e.g. by `apt install {package}`"
        )
    return found


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout[-8000:]}")


def main() -> int:
    """Builds every form and walks through it; what cannot be built here is told."""
    failed = False
    for form in FORMS:
        try:
            built = build(form)
        except (MissingToolError, UnobtainableError) as error:
            print(f"{form}: skipped: {error}")
            continue
        done = built.walk()
        failed |= done.returncode != 0
        print(f"{form}: {built.library}\n{done.stdout}{done.stderr}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
