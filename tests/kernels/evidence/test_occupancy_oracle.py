"""The occupancy calculator against NVIDIA's own, which is a header that g++ compiles."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.kernels.evidence.occupancy import LIMITS, Limits, Usage, occupancy

CAPABILITY = {"sm_87": (8, 7), "sm_110": (11, 0)}
CASES = 4000


def _headers() -> Path | None:
    """The folder of cuda_occupancy.h, beside the compiler or where CUDA installs itself."""
    nvcc = shutil.which("nvcc")
    roots = [Path("/usr/local/cuda")] + ([Path(nvcc).resolve().parents[1]] if nvcc else [])
    roots += sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    found = (root / "include" for root in roots if (root / "include/cuda_occupancy.h").is_file())
    return next(found, None)


@pytest.fixture(scope="module")
def nvidias(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = _headers()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and CUDA's cuda_occupancy.h")
    program = tmp_path_factory.mktemp("occupancy") / "oracle"
    source = Path(__file__).with_name("occupancy_oracle.cpp")
    subprocess.run(
        ["g++", "-std=c++17", "-isystem", str(headers), str(source), "-o", str(program)], check=True
    )
    return program


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_blocks_per_sm_are_nvidias(nvidias: Path, limits: Limits) -> None:
    rng = random.Random(7)
    usages = [
        Usage(
            threads=rng.choice([rng.randint(1, 1024), 32 * rng.randint(1, 32)]),
            registers=rng.randint(1, 255),
            shared=rng.choice([0, rng.randint(0, limits.shared), 128 * rng.randint(0, 400)]),
        )
        for _ in range(CASES)
    ]
    head = (*CAPABILITY[limits.architecture], limits.threads, limits.shared)
    lines = [" ".join(map(str, (*head, u.registers, u.threads, u.shared))) for u in usages]
    done = subprocess.run(
        [str(nvidias)], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.split()]
    assert len(set(expected)) > 10, "cases that all come out alike prove nothing"
    ours = [occupancy(usage, limits).blocks for usage in usages]
    wrong = [case for case in zip(usages, ours, expected, strict=True) if case[1] != case[2]]
    assert not wrong, wrong[:5]
