"""One fault at a time in the fused block's sources: the checks have to see each."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from support.fused_blocks import (
    case_of_blind_values,
    case_of_infinite_scores,
    changed,
    check_exact,
    random_case,
)
from support.kernel_mutants import Fault, mutant
from support.sanitized_blocks import run_sanitized

from metal_edge.export.masked_attention import Fill
from tools.kernels import build
from tools.kernels.block import FOLDER, Block, Case

BARRIER = "simt::sync_block();"
FENCE = "simt::memory_fence();"
BARRIERS, FENCES = 10, 2

# Results go wrong.
WRONG_RESULTS = {
    "no wait for content": Fault("stage_inputs(a, w);\n", "wait<2>", "wait<3>"),
    "no wait for the key projection": Fault("a.problem.epsilon);\n", "wait<1>", "wait<2>"),
    "no wait for the value projection": Fault("  gather(a, w);\n", "wait<1>", "wait<2>"),
    "no wait for the output projection": Fault("  project_values(a, w);\n", "wait<0>", "wait<1>"),
    "arrivals stay": Fault("", "-a.problem.heads)", "0)"),
    "early arrival": Fault("", "a.problem.heads - 1", "a.problem.heads - 2"),
    "mask bits of another warp": Fault("", "(first % 32)", "(first % 16)"),
    "mask of head 0": Fault("", "mask_heads == 1 ? 0 : w.head", "mask_heads * 0"),
    "keys beyond M count": Fault("", "exclude_tail(score, w.keys - first);", ""),
    "scale without log2(e)": Fault("", "p.scale * kLog2e", "p.scale"),
    "distance from another row": Fault("subtract_distances", "% 2 * 8", "% 2 * 7"),
    "no key bias": Fault("", "w.offsets[row] = sum", "w.offsets[row] = 0.0f"),
    "query of image 0": Fault("query_row", "? 0 : image_rows", "? 0 : 0 * image_rows"),
    "residual of image 0": Fault("residual_start", "? 0 : image_rows", "? 0 : 0 * image_rows"),
    "value bias without keys": Fault("", "== 0.0f ? 0.0f : simt", "== 1e9f ? 0.0f : simt"),
    "the rest is lost": Fault("", "+= small[e / 4][e % 4]", "+= 0.0f"),
    "infinite scores unseen": Fault("", "kLog2e, sum);", "kLog2e, sum); sum[0] = sum[1] = 0;"),
    "sample variance": Fault("squares) / ", "(width)", "(width - 1)"),
    "inexact mean": Fault("eight_sum(sum)", "/ static_cast<float>(width)", "* (1.0f / width)"),
}


def probes() -> list[Case]:
    """Few cases that use everything the kernel has."""
    masks = np.random.default_rng(0).random((3, 18, 40)) < 0.4
    masks[:, 4] = False
    grid = np.random.default_rng(1).random((20, 20)) < 0.5
    constant = changed(random_case(5, heads=7), content=60000.0)
    return [
        random_case(1, batch=2, heads=3, queries=18, keys=40, allowed=masks),
        random_case(2, heads=2, head_dim=64, queries=9, keys=72, fill=Fill.ZERO),
        random_case(3, heads=2, queries=20, keys=20, allowed=grid, slopes=(1.0, 0.25), columns=6),
        random_case(4, heads=1, keys=1, queries=2, density=1.0),
        case_of_blind_values(11),
        constant,
        case_of_infinite_scores(6),
    ]


def failures(library: Path) -> list[str]:
    """What the emulation and the comparison with float64 say of these sources."""
    block, said = Block(ctypes.CDLL(str(library))), []
    for number, case in enumerate(probes()):
        for seed in range(2):
            try:
                check_exact(case, block.run_host(case, seed))
            except (AssertionError, RuntimeError) as error:
                said.append(f"probe {number}: {error}")
    return said


def test_the_probes_pass_unharmed(library: Path) -> None:
    assert failures(library) == []


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_results_tell(name: str, library: Path, tmp_path: Path) -> None:
    sources = mutant(tmp_path, FOLDER, WRONG_RESULTS[name])
    assert failures(build.host_library(sources)) != []


def test_every_barrier_and_fence_is_tried() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.cuh"))
    assert (text.count(BARRIER), text.count(FENCE)) == (BARRIERS, FENCES)


@pytest.mark.parametrize("number", range(1, BARRIERS + 1))
def test_threadsanitizer_sees_any_lost_barrier(number: int, library: Path, tmp_path: Path) -> None:
    sources = mutant(tmp_path, FOLDER, Fault("", BARRIER, "", number))
    assert "data race" in run_sanitized(sources, "thread").stderr


@pytest.mark.parametrize("number", range(1, FENCES + 1))
def test_threadsanitizer_sees_any_lost_fence(number: int, library: Path, tmp_path: Path) -> None:
    sources = mutant(tmp_path, FOLDER, Fault("", FENCE, "", number))
    assert "data race" in run_sanitized(sources, "thread").stderr


@pytest.mark.parametrize("rows", ["kBlockRows, w.rows", "a.layout.padded_keys, w.keys"])
def test_addresssanitizer_sees_rows_beyond_the_tensors(
    rows: str, library: Path, tmp_path: Path
) -> None:
    every = rows.split(", ", maxsplit=1)[0]
    sources = mutant(tmp_path, FOLDER, Fault("", rows, f"{every}, {every}"))
    assert "AddressSanitizer" in run_sanitized(sources, "address").stderr
