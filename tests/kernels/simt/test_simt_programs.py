"""Ordinary kernels give the right results in the emulation, whatever the order of its threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from simt_programs import HERE, PROGRAMS, Program, multiply_halves, vector_add
from support.host_kernels import KernelError, call, call_apart

from tools.kernels import build

SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    try:
        build.find_gxx()
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("defines", [{}, {"SIMT_PORTABLE_FIBERS": 1}], ids=["fibers", "ucontext"])
def test_results(make: Callable[[], Program], defines: dict[str, int]) -> None:
    program = make()
    library = build.host_library([program.source], defines=defines)
    for seed in SEEDS:
        arguments = program.fresh()
        call(library, program.function, arguments, seed)
        assert program.right(arguments), f"seed {seed}"


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("sanitizer", get_args(build.Sanitizer))
def test_sanitizers_find_nothing(
    make: Callable[[], Program], sanitizer: build.Sanitizer, tmp_path: Path
) -> None:
    program = make()
    library = build.host_library([program.source], sanitizer=sanitizer)
    environment = build.sanitizer_environment(sanitizer)
    outcome = call_apart(
        library, program.function, program.fresh(), folder=tmp_path, seed=1, environment=environment
    )
    assert not outcome.failed, outcome.text
    assert program.right(outcome.arguments)


@pytest.mark.parametrize("source", sorted(HERE.glob("*.cu")), ids=lambda path: path.stem)
@pytest.mark.parametrize("arch", ["sm_87", "sm_110"])
def test_the_same_sources_are_device_code(source: Path, arch: str) -> None:
    try:
        text = build.ptx(source, arch).read_text()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    assert f".target {arch}" in text
    assert ".entry" in text


def test_rows_of_a_product_meet_their_columns() -> None:
    """A product with one 1 per matrix lands where it must: no transposed fragment hides."""
    program = multiply_halves(16, 8, 16)
    library = build.host_library([program.source])
    for row, column, depth in np.ndindex(16, 8, 16):
        if (row + column + depth) % 7:
            continue  # a seventh of the places
        a, b = np.zeros((16, 16), np.float16), np.zeros((8, 16), np.float16)
        a[row, depth] = b[column, depth] = 1
        product = np.zeros((16, 8), np.float32)
        call(library, program.function, [a, b, product, 16, 8, 16])
        assert np.argwhere(product).tolist() == [[row, column]]


def test_products_of_halves_keep_nan_infinity_and_subnormals() -> None:
    program = multiply_halves(16, 8, 16)
    library = build.host_library([program.source])
    a, b = np.zeros((16, 16), np.float16), np.zeros((8, 16), np.float16)
    smallest = np.float16(2**-24)
    a[0, 0], a[1, 0], a[2, 0], b[0, 0], b[1, 0] = np.nan, np.inf, smallest, 1, smallest
    product = np.zeros((16, 8), np.float32)
    call(library, program.function, [a, b, product, 16, 8, 16])
    assert np.isnan(product[0]).all()  # NaN times 0 is NaN too
    assert product[1, 0] == np.inf
    assert np.isnan(product[1, 2])
    assert product[2, :2].tolist() == [2**-24, 2**-48]


def test_a_launch_that_no_gpu_takes_is_refused() -> None:
    program = vector_add(64)
    library = build.host_library([program.source])
    arguments = program.fresh()
    arguments[3] = 0  # no elements: no blocks
    with pytest.raises(KernelError, match=r"error 9: kernel vector_add: grid\.x is 0, outside 1"):
        call(library, program.function, arguments)
    call(library, program.function, program.fresh())  # and the next is not
