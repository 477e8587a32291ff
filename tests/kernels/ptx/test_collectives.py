"""Exchange within a warp and tensor-core instructions, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ptx_text import run

FEW = settings(max_examples=10)
STORE = "mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p0; st.global.u32 [%rd0], %r1;"


def outcome(body: str, *more: np.ndarray, threads: int = 32) -> np.ndarray:
    out = np.zeros(threads, np.uint32)
    run(body + STORE, out, *more, threads=threads)
    return out


@given(amount=st.integers(0, 31), width=st.sampled_from([2, 4, 8, 16, 32]))
@FEW
def test_shuffles_within_segments(amount: int, width: int) -> None:
    lane = np.arange(32)
    start = lane // width * width
    last = start + width - 1
    cases = {  # as CUDA's __shfl_sync and its kin define them
        "idx": start + amount % width,
        "up": np.where(lane - amount >= start, lane - amount, lane),
        "down": np.where(lane + amount <= last, lane + amount, lane),
        "bfly": np.where((lane ^ amount) <= last, lane ^ amount, lane),
    }
    for mode, source in cases.items():
        control = (32 - width) << 8 | (0 if mode == "up" else 31)
        body = f"add.u32 %r0, %tid, 100; shfl.sync.{mode}.b32 %r1, %r0, {amount}, {control}, -1;"
        assert np.array_equal(outcome(body), source + 100), mode


def test_shuffle_says_whether_the_source_was_in_range() -> None:
    body = "shfl.sync.down.b32 %r0|%q0, %tid, 3, 31, -1; selp.b32 %r1, 1, 0, %q0;"
    assert np.array_equal(outcome(body), np.arange(32) + 3 < 32)


def test_shuffle_with_another_amount_in_each_lane() -> None:
    body = "sub.u32 %r2, 31, %tid; shfl.sync.idx.b32 %r1, %tid, %r2, 31, -1;"
    assert np.array_equal(outcome(body), 31 - np.arange(32))


@given(bits=st.integers(0, 2**32 - 1))
@FEW
def test_votes(bits: int) -> None:
    here = f"""
      mov.u32 %r0, {bits}; shr.u32 %r0, %r0, %tid; and.b32 %r0, %r0, 1; setp.eq.u32 %q0, %r0, 1;
    """
    assert (outcome(here + "vote.sync.ballot.b32 %r1, %q0, -1;") == bits).all()
    assert (outcome(here + "vote.sync.ballot.b32 %r1, !%q0, -1;") == bits ^ 0xFFFFFFFF).all()
    for mode, wanted in (("any", bits != 0), ("all", bits == 2**32 - 1)):
        text = f"vote.sync.{mode}.pred %q1, %q0, -1; selp.b32 %r1, 1, 0, %q1;"
        assert (outcome(here + text) == wanted).all()


def test_votes_of_some_lanes() -> None:
    body = """
      mov.u32 %r1, 0; setp.lt.u32 %q0, %tid, 8; @!%q0 bra SKIP;
      setp.ne.u32 %q1, %tid, 2; vote.sync.ballot.b32 %r1, %q1, 0xff;
    SKIP:
    """
    assert outcome(body).tolist() == [0xFB] * 8 + [0] * 24


@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=32, max_size=32))
@FEW
def test_reductions_and_matches(values: list[int]) -> None:
    given_values = np.array(values, np.int32)
    given_values[7] = given_values[20]
    load = "mul.wide.u32 %rd1, %tid, 4; add.s64 %rd1, %rd1, %p1; ld.global.u32 %r0, [%rd1];"
    cases = {
        "add.s32": given_values.sum(dtype=np.int32),
        "min.s32": given_values.min(),
        "max.u32": given_values.view(np.uint32).max(),
        "xor.b32": np.bitwise_xor.reduce(given_values),
        "and.b32": np.bitwise_and.reduce(given_values),
    }
    for name, wanted in cases.items():
        got = outcome(load + f"redux.sync.{name} %r1, %r0, -1;", given_values)
        assert (got == np.asarray(wanted).astype(np.int64) % 2**32).all(), name
    got = outcome(load + "match.any.sync.b32 %r1, %r0, -1;", given_values)
    wanted = [sum(1 << j for j in range(32) if given_values[j] == v) for v in given_values]
    assert got.tolist() == wanted


def lay_out_a(matrix: np.ndarray, per: int) -> np.ndarray:
    """A [16, K] to registers [R, 32], element by element, as the PTX manual's figures show."""
    depth = matrix.shape[1]
    out = np.zeros((depth // (4 * per) * 2, 32, per), matrix.dtype)
    for row in range(16):
        for column in range(depth):
            half, inside = divmod(column, 4 * per)
            lane = row % 8 * 4 + inside // per
            out[2 * half + row // 8, lane, inside % per] = matrix[row, column]
    return out.view(np.uint32)[..., 0]


def lay_out_b(matrix: np.ndarray, per: int) -> np.ndarray:
    """B [K, 8] to registers [R, 32]."""
    depth = matrix.shape[0]
    out = np.zeros((depth // (4 * per), 32, per), matrix.dtype)
    for row in range(depth):
        for column in range(8):
            part, inside = divmod(row, 4 * per)
            out[part, column * 4 + inside // per, inside % per] = matrix[row, column]
    return out.view(np.uint32)[..., 0]


def gather_c(registers: np.ndarray) -> np.ndarray:
    """Registers [4, 32] of an accumulator to C [16, 8]."""
    matrix = np.zeros((16, 8), registers.dtype)
    for lane in range(32):
        for register in range(4):
            row, column = lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2
            matrix[row, column] = registers[register, lane]
    return matrix


def scatter_c(matrix: np.ndarray) -> np.ndarray:
    registers = np.zeros((4, 32), matrix.dtype)
    for lane in range(32):
        for register in range(4):
            row, column = lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2
            registers[register, lane] = matrix[row, column]
    return registers


def multiply(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One mma of a warp on fragments in registers; returns C's fragment [4, 32]."""
    lines = ["mul.wide.u32 %rd0, %tid, 4;"]
    names = []
    for pointer, registers in ((1, a), (2, b), (3, c)):
        lines.append(f"add.s64 %rd1, %rd0, %p{pointer};")
        group = [f"%x{pointer}{i}" for i in range(len(registers))]
        lines += [f"ld.global.b32 {name}, [%rd1+{128 * i}];" for i, name in enumerate(group)]
        names.append("{" + ", ".join(group) + "}")
    lines.append(f"mma.sync.aligned.{form} {names[2]}, {names[0]}, {names[1]}, {names[2]};")
    lines.append("add.s64 %rd1, %rd0, %p0;")
    lines += [f"st.global.b32 [%rd1+{128 * i}], %x3{i};" for i in range(4)]
    out = np.zeros((4, 32), c.dtype)
    registers = ".reg .b32 " + ", ".join(
        f"%x{p}{i}" for p, r in ((1, a), (2, b), (3, c)) for i in range(len(r))
    )
    run("\n".join(lines), out, a, b, c, registers=registers + ";")
    return out


@pytest.mark.parametrize("depth", [8, 16])
@given(seed=st.integers(0, 1000))
@FEW
def test_mma_of_halves(depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((16, depth)).astype(np.float16)
    b = rng.standard_normal((depth, 8)).astype(np.float16)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    form = f"m16n8k{depth}.row.col.f32.f16.f16.f32"
    got = gather_c(multiply(form, lay_out_a(a, 2), lay_out_b(b, 2), scatter_c(c)))
    wanted = c + a.astype(np.float64) @ b.astype(np.float64)
    assert np.array_equal(got, wanted.astype(np.float32))


@pytest.mark.parametrize("depth", [16, 32])
@pytest.mark.parametrize("types", ["s8.s8", "u8.s8", "u8.u8"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=4)
def test_mma_of_bytes_is_exact(depth: int, types: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.int8 if name == "s8" else np.uint8 for name in types.split("."))
    a = rng.integers(0, 256, (16, depth)).astype(np.uint8).view(first)
    b = rng.integers(0, 256, (depth, 8)).astype(np.uint8).view(second)
    c = rng.integers(-(2**31), 2**31, (16, 8)).astype(np.int32)
    form = f"m16n8k{depth}.row.col.s32.{types}.s32"
    got = gather_c(multiply(form, lay_out_a(a, 4), lay_out_b(b, 4), scatter_c(c)))
    wanted = c + a.astype(np.int64) @ b.astype(np.int64)
    assert np.array_equal(got, wanted.astype(np.int32))
    got = gather_c(
        multiply(
            form.replace("col.", "col.satfinite."), lay_out_a(a, 4), lay_out_b(b, 4), scatter_c(c)
        )
    )
    assert np.array_equal(got, np.clip(wanted, -(2**31), 2**31 - 1))


def test_mma_lets_nan_and_infinity_through() -> None:
    a, b = np.zeros((16, 16), np.float16), np.ones((16, 8), np.float16)
    a[3, 5], a[4, 0], b[0, 2] = np.nan, np.inf, 0
    form = "m16n8k16.row.col.f32.f16.f16.f32"
    c = np.zeros((16, 8), np.float32)
    got = gather_c(multiply(form, lay_out_a(a, 2), lay_out_b(b, 2), scatter_c(c)))
    assert np.isnan(got[3]).all()
    assert np.isnan(got[4, 2])
    assert np.isinf(np.delete(got[4], 2)).all()
    assert (np.delete(got, [3, 4], axis=0) == 0).all()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    # Row r of tile m lies at 16 * (8 * m + r) of shared memory, filled by all lanes before.
    tiles = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    source = np.resize(tiles.reshape(-1), 256).view(np.uint32).reshape(32, 4)
    trans = ".trans" if transposed else ""
    names = ", ".join(f"%r{4 + i}" for i in range(count))
    body = f"""
      mul.wide.u32 %rd0, %tid, 16; add.s64 %rd1, %rd0, %p1;
      ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%rd1];
      mov.u32 %r8, tile; shl.b32 %r9, %tid, 4; add.u32 %r8, %r8, %r9;
      st.shared.v4.b32 [%r8], {{%r0, %r1, %r2, %r3}}; bar.sync 0;
      ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%r8];
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd1, %rd0, %p0;
    """ + "\n".join(f"st.global.b32 [%rd1+{128 * i}], %r{4 + i};" for i in range(count))
    out = np.zeros((count, 32), np.uint32)
    run(body, out, source, shared=".shared .align 16 .b8 tile[512];")
    halves = out.view(np.uint16).reshape(count, 32, 2)
    for tile in range(count):
        matrix = tiles[tile].T if transposed else tiles[tile]
        for lane in range(32):
            row, column = lane // 4, lane % 4 * 2
            assert halves[tile, lane].tolist() == matrix[row, column : column + 2].tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_undoes_ldmatrix(transposed: bool) -> None:
    trans = ".trans" if transposed else ""
    body = f"""
      mul.wide.u32 %rd0, %tid, 16; add.s64 %rd1, %rd0, %p1;
      ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%rd1];
      mov.u32 %r8, tile; shl.b32 %r9, %tid, 4; add.u32 %r8, %r8, %r9;
      st.shared.v4.b32 [%r8], {{%r0, %r1, %r2, %r3}}; bar.sync 0;
      ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r8]; bar.sync 0;
      stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r8], {{%r4, %r5, %r6, %r7}}; bar.sync 0;
      ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%r8];
      add.s64 %rd1, %rd0, %p0; st.global.v4.b32 [%rd1], {{%r0, %r1, %r2, %r3}};
    """
    source = np.random.default_rng(0).integers(0, 2**32, (32, 4)).astype(np.uint32)
    out = np.zeros_like(source)
    run(body, out, source, shared=".shared .align 16 .b8 tile[512];")
    assert np.array_equal(out, source)
