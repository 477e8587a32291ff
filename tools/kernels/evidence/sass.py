"""What ptxas made of a kernel: instructions of a cubin, counted.

NVIDIA's disassembler comes in a wheel, fetched once and unpacked below build/, installed nowhere.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tools.tensorrt.wheels import UnobtainableError, Wheel, unpacked

CACHE = Path(__file__).parents[3] / "build" / "kernels" / "tools"
# x86_64 and aarch64.
_NVDISASM = Wheel(
    release="CUDA 13.2",
    package="nvidia-cuda-nvdisasm",
    version="13.2.51",
    sha256=(
        "5a7acf77c55d6d2911ed6155d4d5bc156ffadf9df7a68a89b0c1155f4b13688c",
        "483c8f652c1ca006135584b4faf7ea1d2bafe4c40ec1c9ef57a04c6acfbdd57f",
    ),
)
_TIMEOUT_S = 120
_LABEL = re.compile(r"^\.text\.(\w+):")
# `/*1930*/  @!P0 HMMA.16816.F32 R12, ...`: an address, maybe a predicate, the opcode.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def disassembler(cache: Path = CACHE) -> Path:
    """The program nvdisasm.

    Raises:
        UnobtainableError: no such wheel for this machine, or no network.
    """
    program = unpacked(_NVDISASM, cache) / "nvidia" / "cu13" / "bin" / "nvdisasm"
    if not program.is_file():
        raise UnobtainableError(f"{_NVDISASM.folder} does not contain {program.name}")
    program.chmod(0o755)  # which unpacking loses
    return program


def instructions(cubin: Path, program: Path) -> dict[str, Counter[str]]:
    """Every kernel's instructions, by opcode with its modifiers.

    Raises:
        RuntimeError: the disassembler does not take the file; says what it says.
    """
    done = subprocess.run(
        [str(program), "-c", str(cubin)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"nvdisasm {cubin.name}: {done.stderr.strip()}")
    return counted(done.stdout)


def counted(listing: str) -> dict[str, Counter[str]]:
    """Instructions per kernel of nvdisasm's listing."""
    found: dict[str, Counter[str]] = {}
    kernel: Counter[str] | None = None
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            kernel = found.setdefault(label[1], Counter())
        elif kernel is not None and (instruction := _INSTRUCTION.match(line)):
            kernel[instruction[1]] += 1
    return found


def family(opcodes: Mapping[str, int], *names: str) -> int:
    """How many instructions are one of `names`, whatever their modifiers: `HMMA`, `LDSM`."""
    return sum(count for opcode, count in opcodes.items() if opcode.split(".")[0] in names)
