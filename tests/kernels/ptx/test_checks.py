"""Each check on a wrong kernel that it must catch, and on the right one, which must pass."""

from __future__ import annotations

import numpy as np
import pytest
from support.ptx_text import kernel, run

from tools.ptx import Device, Kind, Module, ViolationError, launch

SEEDS = [None, 1, 2]
# Every thread writes its number to shared memory; then it reads its neighbour's (the next warp's).
EXCHANGE = """
  mov.u32 %r0, tile; shl.b32 %r1, %tid, 2; add.u32 %r2, %r0, %r1;
  st.shared.u32 [%r2], %tid;
  {barrier}
  xor.b32 %r3, %r1, {distance}; add.u32 %r3, %r3, %r0;
  ld.shared.u32 %r4, [%r3];
  {second}
  cvt.u64.u32 %rd0, %r1; add.s64 %rd0, %rd0, %p0; st.global.u32 [%rd0], %r4;
"""
TILE = ".shared .align 16 .b8 tile[512];"


def kinds(body: str, *arrays: np.ndarray, **options) -> set[Kind]:
    return run(body, *arrays, raises=False, **options).kinds()


def exchange(barrier: str, distance: int, second: str = "", seed: int | None = None) -> set[Kind]:
    out = np.zeros(128, np.uint32)
    body = EXCHANGE.format(barrier=barrier, distance=distance, second=second)
    found = kinds(body, out, threads=128, shared=TILE, seed=seed)
    if not found:
        assert np.array_equal(out, np.arange(128) ^ distance // 4)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_race_between_warps(seed: int | None) -> None:
    assert exchange("bar.sync 0;", 128, seed=seed) == set()
    wrong = exchange("", 128, seed=seed)
    assert wrong >= {Kind.RACE}  # with a seed, also what nobody has written yet
    # a barrier of the warp does not order different warps
    assert Kind.RACE in exchange("bar.warp.sync -1;", 128, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_race_within_a_warp(seed: int | None) -> None:
    assert exchange("bar.warp.sync -1;", 4, seed=seed) == set()
    assert exchange("", 4, seed=seed) == {Kind.RACE}
    # a shuffle makes the lanes meet, but orders no memory
    shuffle = "shfl.sync.bfly.b32 %r9, %tid, 1, 31, -1;"
    assert exchange(shuffle, 4, seed=seed) == {Kind.RACE}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("distance", "barrier"), [(128, "bar.sync 0;"), (4, "bar.warp.sync -1;")])
def test_overwriting_what_others_still_read(seed: int | None, distance: int, barrier: str) -> None:
    overwrite = "st.shared.u32 [%r2], %r4;"
    assert exchange("bar.sync 0;", distance, barrier + overwrite, seed) == set()
    assert exchange("bar.sync 0;", distance, overwrite, seed) == {Kind.RACE}


READ_BY_ALL = """
  mov.u32 %r0, tile; setp.eq.u32 %q0, %tid, {writer}; mov.u32 %r1, 7;
  @%q0 st.shared.u32 [%r0], %r1;
  bar.sync 0;
  ld.shared.u32 %r2, [%r0];
  {between}
  @%q0 st.shared.u32 [%r0], %r2;
"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("writer", [0, 5, 31, 32, 37, 63])  # the last to read, or another
@pytest.mark.parametrize("threads", [32, 64])
def test_read_by_all_then_written_by_one(threads: int, writer: int, seed: int | None) -> None:
    if writer >= threads:
        return
    options = {"threads": threads, "shared": TILE, "seed": seed}
    for between, enough in (("bar.sync 0;", 64), ("bar.warp.sync -1;", 32), ("", 0)):
        body = READ_BY_ALL.format(writer=writer, between=between)
        wanted = set() if threads <= enough else {Kind.RACE}
        assert kinds(body, np.zeros(1), **options) == wanted, between
    # its own read needs no barrier
    alone = READ_BY_ALL.replace("ld.shared", "@%q0 ld.shared").format(writer=writer, between="")
    assert kinds(alone, np.zeros(1), **options) == set()


def test_read_by_one_lane_then_by_another_which_writes() -> None:
    body = """
      mov.u32 %r0, tile; setp.eq.u32 %q0, %tid, 3; setp.eq.u32 %q1, %tid, 5; mov.u32 %r1, 7;
      @%q1 st.shared.u32 [%r0], %r1; bar.sync 0;
      @%q0 ld.shared.u32 %r2, [%r0]; {between} @%q1 ld.shared.u32 %r2, [%r0];
      @%q1 st.shared.u32 [%r0], %r1;
    """
    right = body.format(between="bar.warp.sync -1;")
    assert kinds(right, np.zeros(1), shared=TILE) == set()
    assert kinds(body.format(between=""), np.zeros(1), shared=TILE) == {Kind.RACE}


def test_lanes_that_write_different_values_to_one_place() -> None:
    body = "mov.u32 %r0, tile; st.shared.u32 [%r0], {};"
    assert kinds(body.format("%tid"), np.zeros(1), shared=TILE) == {Kind.RACE}
    assert kinds(body.format("7"), np.zeros(1), shared=TILE) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_order_those_who_meet(seed: int | None) -> None:
    # Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2.
    body = "shr.u32 %r8, %tid, 6; add.u32 %r8, %r8, 1; bar.sync %r8, 64;"
    assert exchange(body, 128, seed=seed) == set()
    assert Kind.RACE in exchange(body, 256, seed=seed)  # the partner is at the other barrier


ASYNC = """
  mov.u32 %r0, tile; shl.b32 %r1, %tid, 4; add.u32 %r2, %r0, %r1;
  cvt.u64.u32 %rd0, %r1; add.s64 %rd1, %rd0, %p0;
  cp.async.cg.shared.global [%r2], [%rd1], 16;
  cp.async.commit_group;
  {wait}
  xor.b32 %r3, %r1, {distance}; add.u32 %r3, %r3, %r0;
  ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3];
  add.s64 %rd1, %rd0, %p1; st.global.v4.u32 [%rd1], {{%r4, %r5, %r6, %r7}};
"""


def asynchronous(wait: str, distance: int, seed: int | None) -> set[Kind]:
    source = np.arange(256, dtype=np.uint32).reshape(64, 4)
    out = np.zeros_like(source)
    body = ASYNC.format(wait=wait, distance=distance)
    shared = ".shared .align 16 .b8 tile[1024];"
    found = kinds(body, source, out, threads=64, shared=shared, seed=seed)
    if not found:
        assert np.array_equal(out, source[np.arange(64) ^ distance // 16])
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_async_copies_need_a_wait_and_then_a_barrier(seed: int | None) -> None:
    own, neighbour, other_warp = 0, 16, 512
    assert asynchronous("cp.async.wait_group 0;", own, seed) == set()
    assert asynchronous("cp.async.wait_all;", own, seed) == set()
    assert asynchronous("", own, seed) == {Kind.ASYNC}
    assert asynchronous("cp.async.wait_group 1;", own, seed) == {Kind.ASYNC}
    assert asynchronous("cp.async.wait_group 0;", neighbour, seed) == {Kind.RACE}
    assert Kind.ASYNC in asynchronous("bar.sync 0;", other_warp, seed)
    too_early = asynchronous("bar.sync 0; cp.async.wait_group 0;", other_warp, seed)
    assert too_early & {Kind.ASYNC, Kind.RACE}
    right = "cp.async.wait_group 0; bar.sync 0;"
    assert asynchronous(right, neighbour, seed) == asynchronous(right, other_warp, seed) == set()


def test_what_an_async_copy_has_not_filled_yet_is_poison() -> None:
    source, out = np.ones((64, 4), np.float32), np.zeros((64, 4), np.float32)
    body = ASYNC.format(wait="", distance=0)
    run(body, source, out, threads=64, shared=TILE.replace("512", "1024"), raises=False)
    assert np.isnan(out).all()


def test_a_partial_async_copy_fills_with_zeros() -> None:
    body = ASYNC.format(wait="cp.async.wait_all;", distance=0)
    body = body.replace("], 16;", "], 16, %r15;")
    source = np.arange(1, 129, dtype=np.uint32).reshape(32, 4)
    for size in (0, 4, 8, 16):
        out = np.zeros_like(source)
        run(f"mov.u32 %r15, {size};" + body, source, out, shared=TILE)
        wanted = source.copy()
        wanted[:, size // 4 :] = 0
        assert np.array_equal(out, wanted)


def test_zero_bytes_are_not_read() -> None:
    copy = ASYNC.format(wait="cp.async.wait_all;", distance=0).replace("], 16;", "], 16, %r15;")
    source, out = np.zeros((31, 4), np.uint32), np.zeros((32, 4), np.uint32)  # one row too few
    assert kinds("mov.u32 %r15, 0;" + copy, source, out, shared=TILE) == set()
    assert kinds("mov.u32 %r15, 16;" + copy, source, out, shared=TILE) == {Kind.BOUNDS}


def test_global_bounds_are_those_of_the_allocation() -> None:
    body = """
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd1, %rd0, %p0; add.s64 %rd2, %rd0, %p1;
      ld.global.u32 %r0, [%rd1{}]; st.global.u32 [%rd2{}], %r0;
    """
    arrays = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    assert kinds(body.format("", ""), *arrays) == set()
    for load, store in (("+4", ""), ("+-4", ""), ("", "+4"), ("", "+-4")):
        report = run(body.format(load, store), *arrays, raises=False)
        assert report.kinds() == {Kind.BOUNDS}
        violation = report.violations[0]
        assert (violation.lane, violation.warp) == (0 if "-" in load + store else 31, 0)
        assert ("argument p0" if load else "argument p1") in violation.message


def test_lanes_out_of_bounds_read_poison_and_write_nothing() -> None:
    body = """
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd1, %rd0, %p0; add.s64 %rd2, %rd0, %p1;
      ld.global.f32 %r0, [%rd1+64]; st.global.f32 [%rd2], %r0; st.global.f32 [%rd2+64], %r0;
    """
    source, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    run(body, source, out, raises=False)
    assert np.array_equal(out[:16], source[16:])
    assert np.isnan(out[16:]).sum() <= 16


def test_null_and_wild_pointers() -> None:
    device = Device()
    module = Module.parse(kernel("ld.global.u32 %r0, [%p0];"))
    for pointer, words in ((0, "near null"), (12345678900, "in no allocation")):
        report = launch(module, "k", 1, 32, [pointer], device=device, raises=False)
        assert report.kinds() == {Kind.BOUNDS}
        assert words in report.violations[0].message


def test_shared_bounds_are_those_of_the_block() -> None:
    body = """
      mov.u32 %r0, tile; shl.b32 %r1, %tid, 2; add.u32 %r1, %r1, %r0; st.shared.u32 [%r1{}], %tid;
    """
    tile = ".shared .align 4 .b8 tile[128];"
    assert kinds(body.format(""), np.zeros(1), shared=tile) == set()
    assert kinds(body.format("+4"), np.zeros(1), shared=tile) == {Kind.BOUNDS}
    assert kinds(body.format("+-4"), np.zeros(1), shared=tile) == {Kind.BOUNDS}
    dynamic = ".extern .shared .align 16 .b8 tile[];"
    assert kinds(body.format(""), np.zeros(1), shared=dynamic, shared_bytes=128) == set()
    assert kinds(body.format(""), np.zeros(1), shared=dynamic, shared_bytes=124) == {Kind.BOUNDS}


@pytest.mark.parametrize(
    ("access", "bytes_needed"),
    [
        ("ld.global.u16 %h0, [%rd0];", 2),
        ("ld.global.u32 %r0, [%rd0];", 4),
        ("ld.global.v2.u32 {%r0, %r1}, [%rd0];", 8),
        ("ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd0];", 16),
        ("mov.u64 %rd1, 0; st.global.u64 [%rd0], %rd1;", 8),
    ],
)
def test_alignment(access: str, bytes_needed: int) -> None:
    array = np.zeros(64, np.uint8)
    for offset in (0, 1, 2, 4, 8, 16):
        found = kinds(f"add.s64 %rd0, %p0, {offset};" + access, array, threads=1)
        assert found == (set() if offset % bytes_needed == 0 else {Kind.ALIGNMENT})


def test_misaligned_allocation() -> None:
    device = Device()
    module = Module.parse(kernel("ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%p0];"))
    for offset in (0, 8, 16):
        pointer = device.upload(np.zeros(4, np.uint32), offset=offset)
        report = launch(module, "k", 1, 1, [pointer], device=device, raises=False)
        assert report.kinds() == ({Kind.ALIGNMENT} if offset % 16 else set())


def test_uninitialised_shared_memory() -> None:
    body = """
      mov.u32 %r0, tile; shl.b32 %r1, %tid, 2; add.u32 %r0, %r0, %r1;
      setp.ne.u32 %q0, %tid, {}; @%q0 st.shared.u32 [%r0], %tid;
      ld.shared.u32 %r2, [%r0];
    """
    assert kinds(body.format(99), np.zeros(1), shared=TILE) == set()
    report = run(body.format(9), np.zeros(1), shared=TILE, raises=False)
    assert report.kinds() == {Kind.UNINITIALISED}
    assert report.violations[0].lane == 9


def test_shared_memory_of_the_next_block_is_uninitialised_again() -> None:
    # Two blocks of 1024 threads run side by side; the third comes to memory that one of them had.
    body = """
      mov.u32 %r1, %ctaid.x; mov.u32 %r0, tile; setp.eq.u32 %q0, %tid, 0;
      setp.ne.and.u32 %q1, %r1, {}, %q0; @%q1 st.shared.u32 [%r0], %r1;
      @%q0 ld.shared.u32 %r2, [%r0];
    """
    options = {"threads": 1024, "grid": 3, "shared": TILE, "raises": False}
    for third in (0, 2):
        report = run(body.format(third), np.zeros(1), **options)
        assert report.kinds() == {Kind.UNINITIALISED}
        assert report.violations[0].block == (third, 0, 0)


def test_uninitialised_registers() -> None:
    body = """
      setp.lt.u32 %q0, %tid, {}; @%q0 mov.u32 %r0, 1;
      add.u32 %r1, %r0, 1;
    """
    assert kinds(body.format(32), np.zeros(1)) == set()
    report = run(body.format(31), np.zeros(1), raises=False)
    assert report.kinds() == {Kind.UNINITIALISED}
    assert "%r0" in report.violations[0].message
    assert report.violations[0].lane == 31


def test_copies_of_nothing_are_no_use_of_it() -> None:
    body = "mov.u32 %r1, %r0; mov.u32 %r2, %r1; {}"
    assert kinds(body.format(""), np.zeros(1)) == set()
    assert kinds(body.format("add.u32 %r3, %r2, 1;"), np.zeros(1)) == {Kind.UNINITIALISED}


def test_registers_written_in_both_arms_or_in_the_first_turn_of_a_loop() -> None:
    body = """
      setp.lt.u32 %q0, %tid, 7; mov.u32 %r5, 0;
      @%q0 bra A; mov.u32 %r0, 1; bra B;
    A: mov.u32 %r0, 2;
    B: add.u32 %r1, %r0, 1;
    LOOP: setp.eq.u32 %q1, %r5, 0; @%q1 mov.u32 %r6, 5;
      add.u32 %r7, %r6, 1; add.u32 %r5, %r5, 1; setp.lt.u32 %q2, %r5, 3; @%q2 bra LOOP;
    """
    assert kinds(body, np.zeros(1)) == set()


def test_a_guard_that_was_never_written() -> None:
    assert kinds("@%q0 mov.u32 %r0, 1;", np.zeros(1)) == {Kind.UNINITIALISED}
    assert kinds("@%q0 bra DONE; DONE:", np.zeros(1)) == {Kind.UNINITIALISED}


DIVERGED = "setp.lt.u32 %q0, %tid, 16; @%q0 bra SKIP; {} SKIP:"


@pytest.mark.parametrize(
    "collective",
    [
        "shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;",
        "vote.sync.ballot.b32 %r1, 1, -1;",
        "redux.sync.add.s32 %r1, %tid, -1;",
        "bar.warp.sync -1;",
    ],
)
def test_collectives_wait_for_the_lanes_they_name(collective: str) -> None:
    assert kinds(collective, np.zeros(1)) == set()
    # The barrier does without lanes that have exited; what they hold is missing to the others.
    barrier = collective.startswith("bar.warp")
    report = run(DIVERGED.format(collective), np.zeros(1), raises=False)
    assert report.kinds() == (set() if barrier else {Kind.DIVERGENCE})
    assert all("lane 0, which has exited" in each.message for each in report)
    elsewhere = "setp.lt.u32 %q0, %tid, 16; @%q0 bra OTHER; {0} bra SKIP; OTHER: {0} SKIP:"
    assert kinds(elsewhere.format(collective), np.zeros(1)) == {Kind.DIVERGENCE}
    only_those = DIVERGED.format(collective.replace("-1;", "0xffff0000;"))
    assert kinds(only_those, np.zeros(1)) == set()
    assert kinds(collective.replace("-1;", "1;"), np.zeros(1)) == {Kind.DIVERGENCE}


def test_collectives_meet_lanes_that_come_another_way() -> None:
    # Half of the lanes take a longer way to the same shuffle.
    body = """
      setp.lt.u32 %q0, %tid, 16; mov.u32 %r0, %tid; @%q0 bra MEET;
      add.u32 %r0, %r0, 100;
    MEET: shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p0; st.global.u32 [%rd0], %r1;
    """
    out = np.zeros(32, np.uint32)
    run(body, out)
    assert np.array_equal(out, np.r_[np.arange(116, 132), np.arange(16)])


def test_matrix_instructions_need_whole_warps() -> None:
    load = "mov.u32 %r0, tile; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r0];"
    multiply = (
        "mov.u32 %r0, 0; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2, %r3, %r4},"
        " {%r0, %r0, %r0, %r0}, {%r0, %r0}, {%r0, %r0, %r0, %r0};"
    )
    fill = """
      mov.u32 %r9, tile; shl.b32 %r8, %tid, 2; add.u32 %r9, %r9, %r8; st.shared.u32 [%r9], %tid;
      bar.sync 0;
    """
    for text in (load, multiply):
        assert kinds(fill + text, np.zeros(1), shared=TILE) == set()
        wrong = kinds(DIVERGED.format(text), np.zeros(1), shared=TILE)
        assert wrong == {Kind.DIVERGENCE}
        assert kinds(text, np.zeros(1), shared=TILE, threads=16) >= {Kind.DIVERGENCE}


def test_threads_at_different_barriers() -> None:
    body = "setp.lt.u32 %q0, %tid, 32; @%q0 bra A; bar.sync 0; bra B; A: bar.sync 0; B:"
    for seed in SEEDS:
        assert kinds(body, np.zeros(1), threads=64, seed=seed) == {Kind.BARRIER}
    together = body.replace("%tid, 32", "%tid, 64")
    assert kinds(together, np.zeros(1), threads=64) == set()


def test_deadlock() -> None:
    body = "setp.lt.u32 %q0, %tid, 32; @%q0 bra A; bar.sync 1; bra B; A: bar.sync 2; B:"
    for seed in SEEDS:
        report = run(body, np.zeros(1), threads=64, seed=seed, raises=False)
        assert report.kinds() == {Kind.DEADLOCK}
        assert "32 threads wait at PTX line" in report.violations[0].message
    missing = "bar.sync 1, 96;"
    assert kinds(missing, np.zeros(1), threads=64) == {Kind.DEADLOCK}
    assert kinds("bar.sync 1, 64;", np.zeros(1), threads=64) == set()


def test_exited_threads_do_not_hold_up_a_barrier() -> None:
    body = "setp.lt.u32 %q0, %tid, 32; @%q0 bra DONE; bar.sync 0; DONE:"
    for seed in SEEDS:
        assert kinds(body, np.zeros(1), threads=96, seed=seed) == set()


def test_arriving_is_not_waiting() -> None:
    # Warp 0 writes and arrives; warp 1 waits and reads.
    body = """
      mov.u32 %r0, tile; setp.ge.u32 %q0, %tid, 32; and.b32 %r1, %tid, 31; shl.b32 %r1, %r1, 2;
      add.u32 %r0, %r0, %r1; @%q0 bra READ;
      st.shared.u32 [%r0], %tid; bar.arrive 1, 64; bra DONE;
    READ: {} ld.shared.u32 %r2, [%r0];
    DONE:
    """
    for seed in SEEDS:
        assert (
            kinds(body.format("bar.sync 1, 64;"), np.zeros(1), threads=64, shared=TILE, seed=seed)
            == set()
        )
    found = kinds(body.format(""), np.zeros(1), threads=64, shared=TILE)
    assert found & {Kind.RACE, Kind.UNINITIALISED}


def test_endless_loops_end() -> None:
    assert kinds("LOOP: bra LOOP;", np.zeros(1), budget=1000) == {Kind.BUDGET}


def test_trap() -> None:
    body = "setp.eq.u32 %q0, %tid, {}; @%q0 trap;"
    assert kinds(body.format(99), np.zeros(1)) == set()
    assert run(body.format(3), np.zeros(1), raises=False).violations[0].lane == 3


def test_violations_are_raised_and_name_their_place() -> None:
    with pytest.raises(ViolationError) as caught:
        run("ld.global.u32 %r0, [%p0+400];", np.zeros(1, np.uint32), threads=64, grid=3)
    text = str(caught.value)
    assert "out of bounds" in text
    assert "block (0, 0, 0), warp 0, lane 0" in text
    assert "ld.global.u32 %r0, [%p0+400]" in text
    assert len(caught.value.report.violations) == 1  # one line, however many lanes
