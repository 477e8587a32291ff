"""Triton against our kernels, and Triton's PTX against our interpreter of PTX.

Needs an environment with Triton, made below build/ (200 MB to fetch); skipped where that fails.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.attention_cases import Case, assert_close, make_case

from tools.kernels import build
from tools.kernels.attention import HostLibrary, ptx_module, run_host, run_ptx
from tools.ptx import Kind
from tools.triton_oracle import (
    Compiled,
    UnavailableError,
    compile_kernel,
    interpret,
    python,
    run_compiled,
)
from tools.triton_oracle.oracle import mask_words

pytestmark = pytest.mark.timeout(1800)  # the first time, the environment is made

HEAD_DIMS = (16, 32, 64)


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    try:
        python()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compiled() -> dict[int, Compiled]:
    return {head_dim: compile_kernel(head_dim) for head_dim in HEAD_DIMS}


def triton_case(tokens: int, head_dim: int, *, heads: int = 2, batch: int = 1, **others) -> Case:
    """A problem that the Triton kernel takes: one tensor, one mask for all heads."""
    return make_case(
        np.float16, queries=tokens, keys=tokens, head_dim=head_dim, heads=heads, batch=batch,
        inputs=1, **others,
    )  # fmt: skip


def sparse(tokens: int) -> np.ndarray:
    """A radius of 3, without the token itself; query 5 may look at nobody."""
    distance = np.abs(np.arange(tokens)[:, None] - np.arange(tokens))
    allowed = (distance <= 3) & (distance > 0)
    allowed[5] = False
    return allowed


CASES = {
    "64 d32": triton_case(64, 32, batch=2),
    "100 d32": triton_case(100, 32, spread=4.0),
    "70 d64": triton_case(70, 64, heads=1),
    "33 d16": triton_case(33, 16, heads=3),
    "sparse": triton_case(90, 32, allowed=sparse(90)),
    "one token": triton_case(1, 32, allowed=np.ones((1, 1), bool), batch=40),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def arguments(case: Case) -> tuple[np.ndarray, np.ndarray, int, float]:
    spec = case.spec
    head_dim = case.tensors[0].shape[-1] // 3 // spec.heads
    return case.tensors[0], spec.allowed[0], spec.heads, head_dim**-0.5


def head_dim_of(case: Case) -> int:
    return case.tensors[0].shape[-1] // 3 // case.spec.heads


@pytest.fixture(scope="session")
def interpreted() -> dict[str, np.ndarray]:
    """What Triton's interpreter makes of the cases."""
    return {name: interpret(*arguments(case)) for name, case in CASES.items()}


@CASE
def test_tritons_interpreter_computes_the_operator(
    case: Case, interpreted: dict[str, np.ndarray], request: pytest.FixtureRequest
) -> None:
    assert_close(interpreted[request.node.callspec.id], case)


@CASE
@pytest.mark.parametrize("seed", [None, 1])
def test_tritons_ptx_interpreted_by_us(
    case: Case,
    seed: int | None,
    compiled: dict[int, Compiled],
    interpreted: dict[str, np.ndarray],
    request: pytest.FixtureRequest,
) -> None:
    out, report = run_compiled(compiled[head_dim_of(case)], *arguments(case), seed=seed)
    assert_close(out, case)
    assert report.statistics.count("mma.sync") > 0
    # One kernel, executed by two interpreters that know nothing of each other: what remains is the
    # rounding of sums in another order.
    theirs = interpreted[request.node.callspec.id.rsplit("-", 1)[-1]].astype(np.float64)
    step = np.spacing(np.maximum(np.abs(theirs), np.abs(out).astype(np.float64)).astype(np.float16))
    assert (np.abs(out - theirs) <= 2 * np.maximum(step, 2.0**-14)).all()


@CASE
def test_our_kernels_agree_with_triton(
    case: Case, interpreted: dict[str, np.ndarray], request: pytest.FixtureRequest
) -> None:
    """Both are within the tolerance, and the oracle is no farther off than that from ours."""
    try:
        library = HostLibrary(HEAD_DIMS)
        ours = [run_host(library, case.tensors, case.spec)]
        ours.append(run_ptx(library, ptx_module(HEAD_DIMS), case.tensors, case.spec)[0])
    except build.MissingToolError as error:
        pytest.skip(str(error))
    theirs = interpreted[request.node.callspec.id]
    for out in ours:
        assert_close(out, case)
        largest = np.abs(theirs.astype(np.float64) - out).max()
        assert largest <= 4 * np.finfo(np.float16).eps * max(1.0, np.abs(theirs).max())


def test_a_query_without_keys_gives_zeros(compiled: dict[int, Compiled]) -> None:
    case = CASES["sparse"]
    for out in (interpret(*arguments(case)), run_compiled(compiled[32], *arguments(case))[0]):
        assert (out[:, 5] == 0).all()
        assert (out[:, 6] != 0).any()


def test_nan_reaches_who_may_look_at_it(compiled: dict[int, Compiled]) -> None:
    qkv, allowed, heads, scale = arguments(CASES["sparse"])
    qkv = qkv.copy()
    qkv[0, 40, 64] = np.nan  # head 0 of key 40
    for out in (
        interpret(qkv, allowed, heads, scale),
        run_compiled(compiled[32], qkv, allowed, heads, scale)[0],
    ):
        hit = np.isnan(out[0, :, :32]).any(axis=1)
        assert np.array_equal(hit, allowed[:, 40])


def test_a_wrong_mask_bit_shows(compiled: dict[int, Compiled]) -> None:
    case = CASES["64 d32"]
    qkv, allowed, heads, scale = arguments(case)
    wrong = allowed.copy()
    wrong[10, 20] ^= True
    with pytest.raises(AssertionError):
        assert_close(run_compiled(compiled[32], qkv, wrong, heads, scale)[0], case)


def test_mask_words() -> None:
    allowed = np.zeros((2, 40), bool)
    allowed[0, [0, 31, 32]], allowed[1, 39] = True, True
    assert mask_words(allowed).tolist() == [[0x80000001, 1], [0, 1 << 7]]


def removals(ptx: str) -> list[tuple[str, str]]:
    """The PTX without one barrier or one wait, for each of them; what was removed."""
    found = re.finditer(r"\n[ \t]*(bar\.sync|cp\.async\.wait_group)[ \t]+0;", ptx)
    return [(match[1], ptx[: match.start()] + ptx[match.end() :]) for match in found]


def test_every_barrier_and_wait_that_triton_emits_is_needed(compiled: dict[int, Compiled]) -> None:
    case = CASES["100 d32"]  # several tiles of keys
    original = compiled[32]
    without = removals(original.ptx)
    assert {what for what, _ in without} == {"bar.sync", "cp.async.wait_group"}
    caught = []
    for what, ptx in without:
        mutant = Compiled(**{**vars(original), "ptx": ptx})
        _, report = run_compiled(mutant, *arguments(case), raises=False)
        caught.append((what, bool(report.kinds() & {Kind.RACE, Kind.ASYNC})))
    assert all(found for _, found in caught), caught
