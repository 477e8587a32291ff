"""The PTX that nvcc makes of the fused block, interpreted: results, rules, resources.

The interpreter raises on races, accesses out of bounds or misaligned, uninitialised reads and
divergent collectives; a test that ends has seen none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fused_blocks import check_exact, random_case
from support.kernel_mutants import Fault, mutant

from metal_edge.export.masked_attention import Fill
from tools.kernels import build
from tools.kernels.block import FOLDER, KERNEL, KERNEL_SOURCE, Block
from tools.ptx import Kind, Module, ViolationError

SMALL: dict[str, dict[str, Any]] = {
    "edges": {"heads": 2, "queries": 18, "keys": 19},
    "batch": {"batch": 2, "heads": 1, "queries": 5, "keys": 33, "query_batch": 1},
    "wide head": {"heads": 1, "head_dim": 64, "queries": 3, "keys": 72},
    "zero": {"heads": 1, "head_dim": 32, "queries": 16, "keys": 17, "fill": Fill.ZERO},
    "grid": {"heads": 2, "queries": 12, "keys": 12, "slopes": (1.0, 0.5), "columns": 5},
}

FENCE, BARRIER = "simt::memory_fence();", "simt::sync_block();"
FAULTS = {
    "no fence before the arrival": (Fault("arrive", FENCE, ""), Kind.RACE),
    "no fence after it": (Fault("atomic_add", FENCE, ""), Kind.RACE),
    "no barrier after the LayerNorm": (Fault("problem.epsilon);\n", BARRIER, ""), Kind.RACE),
    "no wait for w_out": (Fault("project_values(a, w);\n", "wait<0>", "wait<1>"), Kind.ASYNC),
    "queries beyond N": (Fault("", "kBlockRows, w.rows", "kBlockRows, 16"), Kind.BOUNDS),
}


@pytest.fixture(scope="session")
def module(ptx: Path) -> Module:
    return Module.load(ptx)


@pytest.mark.parametrize("name", SMALL)
def test_interpreted_ptx_is_exact_and_breaks_no_rule(
    block: Block, module: Module, name: str
) -> None:
    case = random_case(30, **SMALL[name])
    out, _ = block.run_ptx(module, case)
    check_exact(case, out)


def test_bitwise_equal_in_every_order_of_blocks_and_warps(block: Block, module: Module) -> None:
    case = random_case(31, heads=3, queries=18, keys=19)
    first, _ = block.run_ptx(module, case)
    for seed in (1, 2):
        np.testing.assert_array_equal(block.run_ptx(module, case, seed)[0], first)


def test_work_is_what_the_readme_counts(block: Block, module: Module) -> None:
    """1.70 million products per thread block of the model's, 426 KB of operands."""
    case = random_case(33, heads=4, head_dim=64, queries=16, keys=72)
    _, report = block.run_ptx(module, case)
    done = Counter[str]()
    for opcode, count in report.statistics.opcodes.items():
        done[opcode.split(".")[0]] += count
    width, keys, thread_blocks = 256, 80, 4  # keys: in whole tiles
    products = 16 * 64 * width * (1 + 2 + 1) + 2 * 16 * width * keys
    assert done["mma"] * 16 * 8 * 16 == thread_blocks * products
    assert done["ldmatrix"] * 512 == thread_blocks * 425_984


@pytest.mark.parametrize("name", FAULTS)
def test_the_interpreter_names_a_fault(block: Block, ptx: Path, tmp_path: Path, name: str) -> None:
    fault, kind = FAULTS[name]
    sources = mutant(tmp_path, FOLDER, fault)
    source = next(path for path in sources if path.name == KERNEL_SOURCE.name)
    broken = Module.load(build.ptx(source))
    with pytest.raises(ViolationError) as caught:
        block.run_ptx(broken, random_case(32, heads=2, queries=3, keys=19), 1)
    assert kind in caught.value.report.kinds()


@pytest.mark.parametrize("arch", ["sm_87", "sm_110"])
def test_nothing_is_spilled(arch: str) -> None:
    try:
        used = build.ptxas_report(KERNEL_SOURCE, arch)[KERNEL]
    except build.MissingToolError as error:
        pytest.skip(str(error))
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0)
    assert used.registers * 256 <= 65536  # one block at least
