"""What nvcc makes of the kernels: no spills, tensor cores used, launchable; what they move."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tools.kernels import build
from tools.kernels.attention import ALL_HEAD_DIMS, HostLibrary, ptx_module
from tools.kernels.block import KERNEL_SOURCE
from tools.kernels.evidence import compiled, fused, measure, problems, sass
from tools.kernels.evidence.sass import family
from tools.tensorrt.wheels import UnobtainableError

NAMES = {each.name: each for each in problems.problems()}


@pytest.fixture(scope="module")
def nvcc() -> Path:
    try:
        build.find_gxx()
        return build.find_nvcc()
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def launches(nvcc: Path) -> dict[str, compiled.Launch]:
    return compiled.attention_launches(HostLibrary())


@pytest.fixture(scope="module", params=compiled.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, nvcc: Path) -> str:
    name: str = request.param
    try:
        build.cubin(build.ROOT / "tests/kernels/simt/vector_add.cu", name)
    except build.BuildError as error:
        if "arch" in str(error):
            pytest.skip(f"{nvcc} does not know {name}")
        raise
    return name


@pytest.fixture(scope="module")
def kernels(architecture: str, launches: dict[str, compiled.Launch]) -> list[compiled.Kernel]:
    return compiled.compiled(
        launches, compiled.KERNELS_SOURCE, ALL_HEAD_DIMS, architectures=[architecture]
    )


def test_no_kernel_spills_and_every_one_fits_an_sm(
    kernels: list[compiled.Kernel], architecture: str
) -> None:
    for kernel in kernels:
        used = kernel.resources[architecture]
        assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), kernel.name
        assert kernel.occupancy(architecture).blocks >= 1, kernel.name


def test_every_kernel_is_one_that_the_planner_launches(
    kernels: list[compiled.Kernel], architecture: str
) -> None:
    report = build.ptxas_report(
        compiled.KERNELS_SOURCE, architecture, compiled.head_dims_define(ALL_HEAD_DIMS)
    )
    assert {kernel.name for kernel in kernels} == set(report)


def test_the_machine_code_uses_tensor_cores_and_no_local_memory(
    launches: dict[str, compiled.Launch], architecture: str
) -> None:
    try:
        program = sass.disassembler()
    except UnobtainableError as error:
        pytest.skip(str(error))
    defines = compiled.head_dims_define(ALL_HEAD_DIMS)
    code = sass.instructions(build.cubin(compiled.KERNELS_SOURCE, architecture, defines), program)
    for name in launches:
        counts: Counter[str] = code[name]
        assert family(counts, "LDL", "STL") == 0, f"{name} keeps variables in local memory"
        tensor = "plain" not in name
        assert (family(counts, "HMMA") > 0) is tensor, name
        assert (family(counts, "IMMA") > 0) is ("_s8_" in name), name
        assert (family(counts, "LDGSTS") > 0) is tensor, name


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["metal-squares", "features"])
def test_no_bank_conflicts_and_nothing_is_written_twice(
    nvcc: Path, name: str, precision: str
) -> None:
    problem = NAMES[name]
    library, module = HostLibrary((32,)), ptx_module((32,))
    done = measure.measure(problem, precision, library, module)
    least = problems.work(problem, precision)
    assert done.conflicts == 0 < done.passes
    assert done.written == least.written
    assert least.read <= done.read
    assert 0.5 < done.coalescing <= 1


def test_a_window_reads_its_key_tiles_alone(nvcc: Path) -> None:
    window = NAMES["window"].one_head()
    library, module = HostLibrary((64,)), ptx_module((64,))
    done = measure.measure(window, "fp16", library, module)
    needed, every = problems.tiles(window)
    assert needed < every
    # 64 queries meet 64 keys in 4 warps: 2 x 16 x 64 x 64 x 64 / (16 x 16 x 8) products in all.
    per_tile = 4 * (64 // 8) * (64 // 16) * 2
    assert done.products == needed * per_tile


def test_the_page_lists_the_kernels_that_there_are(launches: dict[str, compiled.Launch]) -> None:
    page = (build.ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(masked_attention\w+)` \|", page, re.MULTILINE))
    assert listed == {*launches, *fused.launches()}, "run `make kernels-evidence`"


def test_the_fused_block_neither_spills_nor_writes_wrong_numbers(architecture: str) -> None:
    (kernel,) = compiled.compiled(fused.launches(), KERNEL_SOURCE, architectures=[architecture])
    used = kernel.resources[architecture]
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0)
    assert kernel.occupancy(architecture).blocks == 1
    done = fused.measure(NAMES["zeroleak"])  # compares with float64
    assert done.read >= fused.work(NAMES["zeroleak"]).read
