"""What the finished library shows and needs, and what TensorRT's own registry makes of it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.kernels.plugin import Built
from tools.tensorrt.wheels import UnobtainableError, combined

PROBE = Path(__file__).with_name("registry_probe.py")
MASK = "feff0000fdff0000fbff0000f7ff0000" * 4  # 16 x 16
GOOD = {"heads": 2, "mask_shape": [1, 16, 16], "mask": MASK, "scale": 0.5, "fill": "exclude"}
BAD = GOOD | {"mask_shape": [1, 16, 33]}


def nm(library: Path, *options: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    done = subprocess.run(
        ["nm", "--dynamic", *options, str(library)], capture_output=True, text=True, check=True
    )
    return [line.split()[-1].split("@")[0] for line in done.stdout.splitlines()]


def test_only_what_tensorrt_looks_for_is_exported(for_a_device: Built) -> None:
    exported = nm(for_a_device.library, "--defined-only")
    assert sorted(exported) == ["getCreators", "metal_edge_plugin_version", "setLoggerFinder"]


def test_it_needs_neither_tensorrt_nor_a_cuda_library(for_a_device: Built) -> None:
    undefined = nm(for_a_device.library, "--undefined-only")
    assert "malloc" in undefined or "dlopen" in undefined  # nm did list them
    foreign = [name for name in undefined if "nvinfer" in name or name.startswith(("cu", "getPl"))]
    assert foreign == []
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    done = subprocess.run(
        ["readelf", "--dynamic", str(for_a_device.library)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    needed = [line for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [line for line in needed if "nvinfer" in line or "libcu" in line]


def test_kernels_for_the_named_gpus_are_in_it(cuda: Built) -> None:
    """Orin and Thor as machine code, and PTX for what comes after."""
    image = cuda.library.read_bytes()
    assert b"sm_87" in image or shutil.which("cuobjdump") is None
    if shutil.which("cuobjdump") is None:
        pytest.skip("cuobjdump is not installed")
    listed = subprocess.run(
        ["cuobjdump", "--list-elf", "--list-ptx", str(cuda.library)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "sm_87.cubin" in listed and "sm_110.cubin" in listed and "sm_110.ptx" in listed


def test_the_version_can_be_read_without_tensorrt(cuda: Built, emulated: Built) -> None:
    said = []
    for built in (cuda, emulated):
        version = ctypes.CDLL(str(built.library)).metal_edge_plugin_version
        version.restype = ctypes.c_char_p
        said.append(version().decode())
    number, tensorrt, backend = said[0].split()
    assert number == "1"
    assert tensorrt.startswith("TensorRT-1") and backend.startswith("CUDA-1")
    assert said[1].split() == [number, tensorrt, "emulation"]


@pytest.fixture(scope="module")
def answer(cuda: Built) -> dict[str, Any]:
    """From a process of its own: TensorRT ends a process when something is wrong."""
    try:
        path = combined("lean")
    except UnobtainableError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, str(PROBE)],
        input=json.dumps({"library": str(cuda.library), "good": GOOD, "bad": BAD}),
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": path, "PATH": os.environ.get("PATH", "")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


def test_the_registry_finds_both_operators_and_lets_them_go(answer: dict[str, Any]) -> None:
    ours = [["MaskedAttention", "1", ""], ["MaskedAttentionBlock", "1", ""]]
    assert [creator for creator in answer["loaded"] if creator not in answer["before"]] == ours
    assert answer["after"] == answer["before"]


def test_the_registry_makes_a_plugin_of_fields(answer: dict[str, Any]) -> None:
    assert answer["outputs"] == 1
    assert answer["interfaces"] == [
        "PLUGIN_V3ONE_CORE",
        "PLUGIN_V3ONE_BUILD",
        "PLUGIN_V3ONE_RUNTIME",
    ]
    identity = answer["timing_cache_id"]
    assert identity.startswith("MaskedAttention/1 heads=2 mask=1x16x16:")
    assert identity.endswith(" fill=exclude scale=0x1p-1")


def test_the_registry_gets_no_plugin_for_bad_fields(answer: dict[str, Any]) -> None:
    """No builder lives in that process, so TensorRT has no logger to give, and stderr tells."""
    assert answer["refused"]
    wanted = "layer 'bad': mask has 128 hex digits; mask_shape (1, 16, 33) needs 256"
    assert wanted in answer["stderr"]
