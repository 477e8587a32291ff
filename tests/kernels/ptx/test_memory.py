"""Loads, stores, atomics, what orders them between blocks; parameters, local, constant memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from support.ptx_text import HEADER, kernel, run

from tools.ptx import Device, Kind, Module, PtxError, launch

SEEDS = [None, 1, 2]
TILE = ".shared .align 16 .b8 tile[512];"


def test_vectors_and_narrow_elements() -> None:
    body = """
      mul.wide.u32 %rd0, %tid, 8; add.s64 %rd1, %rd0, %p0; add.s64 %rd2, %rd0, %p1;
      ld.global.v4.u16 {%h0, %h1, %h2, %h3}, [%rd1];
      st.global.v4.u16 [%rd2], {%h3, %h2, %h1, %h0};
    """
    source = np.arange(128, dtype=np.uint16).reshape(32, 4)
    out = np.zeros_like(source)
    run(body, source, out)
    assert np.array_equal(out, source[:, ::-1])


def test_signed_bytes_fill_registers_with_their_sign() -> None:
    body = """
      cvt.u64.u32 %rd0, %tid; add.s64 %rd1, %rd0, %p0; ld.global.{0}8 %h0, [%rd1];
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd1, %rd0, %p1; cvt.{0}32.{0}16 %r0, %h0;
      st.global.b32 [%rd1], %r0;
    """
    source = np.arange(-16, 16, dtype=np.int8)
    for kind in "su":
        out = np.zeros(32, np.int32)
        run(body.format(kind), source, out)
        assert np.array_equal(out, source if kind == "s" else source.view(np.uint8))


def test_generic_addresses_reach_every_memory() -> None:
    body = """
      mov.u32 %r0, tile; cvt.u64.u32 %rd0, %r0; cvta.shared.u64 %rd0, %rd0;
      mul.wide.u32 %rd1, %tid, 4; add.s64 %rd0, %rd0, %rd1; st.u32 [%rd0], %tid;
      mov.u64 %rd2, mine; cvta.local.u64 %rd2, %rd2; st.u32 [%rd2], 7; ld.local.u32 %r3, [mine];
      ld.shared.u32 %r1, [%r0]; ld.u32 %r2, [%rd0]; add.u32 %r2, %r2, %r3;
      add.s64 %rd1, %rd1, %p0; st.u32 [%rd1], %r2;
    """
    body = body.replace("ld.shared.u32 %r1, [%r0];", "").replace("[%rd2], 7", "[%rd2], %r9")
    out = np.zeros(32, np.uint32)
    run("mov.u32 %r9, 7;" + body, out, shared=TILE + " .local .align 4 .b8 mine[4];")
    assert np.array_equal(out, np.arange(32) + 7)


def test_local_memory_is_each_threads_own() -> None:
    body = """
      st.local.u32 [mine+4], %tid; bar.sync 0; ld.local.u32 %r0, [mine+4];
      mul.wide.u32 %rd1, %tid, 4; add.s64 %rd1, %rd1, %p0; st.global.u32 [%rd1], %r0;
    """
    out = np.zeros(64, np.uint32)
    run(body, out, threads=64, shared=".local .align 4 .b8 mine[8];")
    assert np.array_equal(out, np.arange(64))
    wrong = run(body.replace("+4", "+8"), out, shared=".local .align 4 .b8 mine[8];", raises=False)
    assert wrong.kinds() == {Kind.BOUNDS}


def test_constants_and_globals_of_the_module() -> None:
    text = kernel("""
      mov.u64 %rd0, table; mul.wide.u32 %rd1, %tid, 2; add.s64 %rd0, %rd0, %rd1;
      ld.const.u16 %h0, [%rd0]; ld.global.u16 %h1, [offset]; add.u16 %h0, %h0, %h1;
      add.s64 %rd1, %rd1, %p0; st.global.u16 [%rd1], %h0;
    """).replace(HEADER, HEADER + ".const .align 2 .u16 table[4] = {5, 6, 0x10, 9};\n"
                 ".global .align 2 .u16 offset = 100;\n")  # fmt: skip
    out = np.zeros(4, np.uint16)
    launch(Module.parse(text), "k", 1, 4, [out])
    assert out.tolist() == [105, 106, 116, 109]


class Struct(ctypes.Structure):
    _fields_ = [
        ("pointer", ctypes.c_uint64), ("count", ctypes.c_int32), ("scale", ctypes.c_float),
        ("bytes", ctypes.c_uint8 * 3),
    ]  # fmt: skip


STRUCT_KERNEL = (
    HEADER
    + """
.visible .entry k(.param .u32 first, .param .align 8 .b8 s[24], .param .f32 last) {
  .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .b16 %h<4>;
  ld.param.u64 %rd0, [s]; ld.param.v2.u32 {%r0, %r1}, [s+8]; ld.param.u8 %h0, [s+18];
  ld.param.u32 %r2, [first]; ld.param.f32 %r3, [last];
  cvt.u32.u16 %r4, %h0;
  st.global.v4.u32 [%rd0], {%r0, %r1, %r2, %r3}; st.global.u32 [%rd0+16], %r4;
  ret;
}"""
)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_struct_parameters(as_bytes: bool) -> None:
    device = Device()
    out = np.zeros(5, np.uint32)
    pointer = device.upload(out)
    struct = Struct(pointer, -3, 1.5, (1, 2, 200))
    argument = bytes(struct) if as_bytes else struct
    launch(Module.parse(STRUCT_KERNEL), "k", 1, 1, [77, argument, 2.5], device=device)
    out = device.download(pointer, out)
    assert out[:1].view(np.int32)[0] == -3
    assert out[1:2].view(np.float32)[0] == 1.5
    assert (out[2], out[4]) == (77, 200)
    assert out[3:4].view(np.float32)[0] == 2.5


def test_arguments_that_do_not_fit_are_refused() -> None:
    module = Module.parse(STRUCT_KERNEL)
    good = [1, bytes(24), 1.0]
    for position, value, words in (
        (0, 1 << 32, "first"), (0, -1, "first"), (0, "x", "first"), (0, np.zeros(1), "no pointer"),
        (1, bytes(23), "24 bytes, not 23"), (1, 5, "struct"),
    ):  # fmt: skip
        arguments = list(good)
        arguments[position] = value
        with pytest.raises(PtxError, match=words):
            launch(module, "k", 1, 1, arguments)
    with pytest.raises(PtxError, match="takes 3 arguments, not 2"):
        launch(module, "k", 1, 1, good[:2])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("operation", "wanted"),
    [("add.u32", 96 * 95 // 2), ("max.u32", 95), ("or.b32", 127), ("inc.u32", 96 % 10)],
)
def test_atomics_of_all_threads(operation: str, wanted: int, seed: int | None) -> None:
    value = "9" if operation.startswith("inc") else "%r1"
    body = f"""
      mov.u32 %r0, %ctaid.x; mad.lo.u32 %r1, %r0, 32, %tid;
      red.global.{operation} [%p0], {value};
    """
    out = np.zeros(1, np.uint32)
    run(body, out, grid=3, seed=seed)
    assert out[0] == wanted


def test_atomics_return_what_was_there() -> None:
    body = """
      atom.global.add.u32 %r0, [%p0], 1;
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p1; st.global.u32 [%rd0], %r0;
    """
    counter, out = np.zeros(1, np.uint32), np.zeros(64, np.uint32)
    run(body, counter, out, threads=64)
    assert sorted(out.tolist()) == list(range(64))


@pytest.mark.parametrize("seed", SEEDS)
def test_compare_and_swap_has_one_winner(seed: int | None) -> None:
    body = """
      add.u32 %r1, %tid, 1; atom.global.cas.b32 %r0, [%p0], 0, %r1;
      setp.eq.u32 %q0, %r0, 0; @%q0 red.global.add.u32 [%p0+4], 1;
    """
    out = np.zeros(2, np.uint32)
    run(body, out, threads=96, seed=seed)
    assert out[1] == 1
    assert 1 <= out[0] <= 96


def test_atomics_on_shared_memory_are_no_race() -> None:
    body = """
      mov.u32 %r0, tile; setp.eq.u32 %q0, %tid, 0; mov.u32 %r2, 0;
      @%q0 st.shared.u32 [%r0], %r2; {first}
      atom.shared.add.u32 %r1, [%r0], 1; {second}
      ld.shared.u32 %r3, [%r0]; @%q0 st.global.u32 [%p0], %r3;
    """
    for seed in SEEDS:
        out = np.zeros(1, np.uint32)
        options = {"threads": 96, "shared": TILE, "seed": seed, "raises": False}
        report = run(body.format(first="bar.sync 0;", second="bar.sync 0;"), out, **options)
        assert report.kinds() == set()
        assert out[0] == 96
        assert run(body.format(first="", second="bar.sync 0;"), out, **options).kinds() >= {
            Kind.RACE
        }
        assert run(body.format(first="bar.sync 0;", second=""), out, **options).kinds() == {
            Kind.RACE
        }


def test_races_between_blocks() -> None:
    body = """
      mov.u32 %r0, %ctaid.x; mul.wide.u32 %rd0, %r0, {}; add.s64 %rd0, %rd0, %p0;
      st.global.u32 [%rd0], %r0;
    """
    for seed in SEEDS:
        out = np.zeros(4, np.uint32)
        right = run(body.format(4), out, threads=1, grid=4, seed=seed, raises=False)
        assert right.kinds() == set()
        wrong = run(body.format(0), out, threads=1, grid=4, seed=seed, raises=False)
        assert wrong.kinds() == {Kind.RACE}
        assert "argument p0" in wrong.violations[0].message


def test_a_block_barrier_orders_global_memory_too() -> None:
    body = """
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p0; st.global.u32 [%rd0], %tid;
      {} sub.u32 %r0, 63, %tid; mul.wide.u32 %rd0, %r0, 4; add.s64 %rd0, %rd0, %p0;
      ld.global.u32 %r1, [%rd0];
    """
    for seed in SEEDS:
        out = np.zeros(64, np.uint32)
        options = {"threads": 64, "seed": seed, "raises": False}
        assert run(body.format("bar.sync 0;"), out, **options).kinds() == set()
        assert run(body.format(""), out, **options).kinds() == {Kind.RACE}
        # a fence alone is no meeting
        assert run(body.format("membar.gl;"), out, **options).kinds() == {Kind.RACE}


# Every block writes its number, the last to arrive adds them up. {0} and {1}: fences.
LAST_BLOCK = """
  mov.u32 %r0, %ctaid.x; mov.u32 %r5, %nctaid.x; sub.u32 %r5, %r5, 1;
  mul.wide.u32 %rd0, %r0, 4; add.s64 %rd0, %rd0, %p0; add.u32 %r1, %r0, 1;
  st.global.u32 [%rd0], %r1;
  {0}
  atom.global.add.u32 %r2, [%p1], 1;
  {1}
  setp.ne.u32 %q0, %r2, %r5; @%q0 bra DONE;
  mov.u32 %r3, 0; mov.u64 %rd1, %p0; mov.u32 %r6, 0;
LOOP: ld.global.u32 %r4, [%rd1]; add.u32 %r3, %r3, %r4; add.s64 %rd1, %rd1, 4;
  add.u32 %r6, %r6, 1; setp.le.u32 %q1, %r6, %r5; @%q1 bra LOOP;
  st.global.u32 [%p2], %r3;
DONE:
"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
@pytest.mark.parametrize(
    ("before", "after", "right"),
    [
        ("membar.gl;", "membar.gl;", True),
        ("fence.acq_rel.gpu;", "fence.acq_rel.gpu;", True),
        ("membar.gl;", "", False),
        ("", "membar.gl;", False),
        ("membar.cta;", "membar.gl;", False),
    ],
)
def test_the_last_block_to_arrive(before: str, after: str, right: bool, seed: int | None) -> None:
    parts, count, total = np.zeros(5, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    report = run(
        LAST_BLOCK.format(before, after), parts, count, total,
        threads=1, grid=5, seed=seed, raises=False,
    )  # fmt: skip
    assert report.kinds() == (set() if right else {Kind.RACE})
    assert total[0] == 15


def test_what_is_written_after_the_fence_is_not_released() -> None:
    store = "st.global.u32 [%rd0], %r1;"
    late = LAST_BLOCK.format("membar.gl;", "membar.gl;").replace(store, "")
    late = late.replace("membar.gl;", "membar.gl; " + store, 1)
    for seed in (None, 1, 2):
        arrays = [np.zeros(n, np.uint32) for n in (5, 1, 1)]
        report = run(late, *arrays, threads=1, grid=5, seed=seed, raises=False)
        assert report.kinds() == {Kind.RACE}


def test_ordering_words_on_the_atomic_itself() -> None:
    for word, kinds in (
        ("acq_rel.gpu", set()),
        ("relaxed.gpu", {Kind.RACE}),
        ("release.gpu", {Kind.RACE}),
    ):
        text = LAST_BLOCK.format("", "").replace("atom.global", f"atom.{word}.global")
        arrays = [np.zeros(n, np.uint32) for n in (5, 1, 1)]
        report = run(text, *arrays, threads=1, grid=5, raises=False)
        assert report.kinds() == kinds, word


def test_flags_by_release_and_acquire() -> None:
    # Block 0 writes and raises a flag; block 1 reads it, and the data if it is up.
    body = """
      mov.u32 %r0, %ctaid.x; setp.eq.u32 %q0, %r0, 1; @%q0 bra READER;
      mov.u32 %r1, 42; st.global.u32 [%p0], %r1; mov.u32 %r2, 1; st.{0}.global.u32 [%p1], %r2;
      bra DONE;
    READER: ld.{1}.global.u32 %r3, [%p1]; setp.eq.u32 %q1, %r3, 0; @%q1 bra DONE;
      ld.global.u32 %r4, [%p0];
    DONE:
    """
    for words, wanted in (
        (("release.gpu", "acquire.gpu"), set()),
        (("relaxed.gpu", "acquire.gpu"), {Kind.RACE}),
        (("release.gpu", "relaxed.gpu"), {Kind.RACE}),
    ):
        found = set()
        for seed in range(6):  # orders in which the flag is up
            arrays = [np.zeros(1, np.uint32), np.zeros(1, np.uint32)]
            found |= run(
                body.format(*words), *arrays, threads=1, grid=2, seed=seed, raises=False
            ).kinds()
        assert found == wanted, words
