"""Parsing, launching, schedules and statistics."""

from __future__ import annotations

import numpy as np
import pytest
from support.ptx_text import HEADER, kernel, run

from tools.ptx import Kind, Module, PtxError, launch
from tools.ptx.__main__ import main
from tools.ptx.dataflow import maybe_uninitialised

TILE = ".shared .align 16 .b8 tile[4096];"


# --- parsing


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("wgmma.fence.sync.aligned;", "wgmma"),
        ("add.f128 %r0, %r0, %r0;", "add.f128"),
        ("mul.rz.f32 %r0, %r0, %r0;", "modifier .rz"),
        ("add.u32 %r0, %r0;", "3 operands"),
        ("ld.global.weird.u32 %r0, [%p0];", "modifier .weird"),
        ("cp.async.bulk.shared.global [%r0], [%p0], 16;", "bulk"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r0}, {%r0}, {%r0};", "mma"),
        ("bra NOWHERE;", "label"),
        ("shl.wide.b32 %r0, %r0, 1;", "modifier .wide"),
        ("cvt.rzi.rp.s32.f32 %r0, %r0;", "rounding"),
        ("cvt.s32.f32 %r0, %r0;", "rounding"),
        ("setp.lt.and.or.s32 %q0, %r0, %r0, %q0;", "modifier .or"),
        ("min.xorsign.abs.f32 %r0, %r0, %r0;", "modifier"),
        ("atom.global.cas.f32 %r0, [%p0], %r0, %r0;", "atomic"),
        ("fence.proxy.async;", "modifier"),
        ("mov.u32 %r0, %nonsense;", "%nonsense"),
        ("mov.u32 %r0, nothing;", "nothing"),
    ],
)
def test_unknown_instructions_are_errors_that_name_the_line(body: str, words: str) -> None:
    text = kernel("\n\n" + body)
    line = text.split(body)[0].count("\n") + 1
    with pytest.raises(PtxError, match=rf"line {line}\b") as caught:
        launch(Module.parse(text), "k", 1, 32, [np.zeros(1)])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".visible .func f() { ret; }", "func"),
        (".visible .entry k() { .reg .b32 %r<2>; add.u32 %r0, %r1, %r5; ret; }", "%r5"),
        (".visible .entry k() { @%p0 ret; }", "%p0"),
        (".visible .entry k() { ret }", "';' is missing"),
        (".visible .entry k() { ret;", "ends inside"),
        (".visible .entry k(.param .weird p) { ret; }", "parameter"),
        (".visible .entry k() { A: A: ret; }", "A twice"),
        (".strange 5;", "directive"),
    ],
)
def test_broken_files(text: str, words: str) -> None:
    with pytest.raises(PtxError, match=words):
        launch(Module.parse(HEADER + text), "k", 1, 1, [])


def test_scopes_hide_registers_of_the_same_name() -> None:
    body = """
      {.reg .b32 x; mov.u32 x, 5; {.reg .b32 x; mov.u32 x, 7; mov.u32 %r0, x;} mov.u32 %r1, x;}
      {.reg .b64 x; mov.u64 x, 9; cvt.u32.u64 %r2, x;}
      st.global.u32 [%p0], %r0; st.global.u32 [%p0+4], %r1; st.global.u32 [%p0+8], %r2;
    """
    out = np.zeros(3, np.uint32)
    run(body, out, threads=1)
    assert out.tolist() == [7, 5, 9]


def test_literals() -> None:
    body = """
      mov.u32 %r0, 0xFFU; mov.u32 %r1, 017; mov.f32 %r2, 0f3FC00000; mov.u32 %r3, -1;
      st.global.v4.u32 [%p0], {%r0, %r1, %r2, %r3};
    """
    out = np.zeros(4, np.uint32)
    run(body, out, threads=1)
    assert out.tolist() == [255, 15, 0x3FC00000, 0xFFFFFFFF]


def test_source_lines_and_comments() -> None:
    text = """
      // a comment; with { signs
      .loc 1 12 3
      add.u32 %r0, %tid, 1; /* two
      lines */
      .loc 2 40 1, function_name $x, inlined_at 1 13 5
      add.u32 %r1, %r0, 1;
    """
    module = Module.parse('.file 1 "/a/first.cu"\n' + kernel(text) + '\n.file 2 "/b/second.h"')
    first, second, *_ = [i for i in module.kernels["k"].instructions if i.parts[0] == "add"]
    assert str(first.source) == "first.cu:12"
    assert str(second.source) == "second.h:40, inlined at first.cu:13"
    assert second.line == first.line + 3


def test_definite_assignment() -> None:
    text = kernel("""
      mov.u32 %r0, 1; setp.eq.u32 %q0, %tid, 0;
      @%q0 bra A; mov.u32 %r1, 2; mov.u32 %r2, 3; bra B;
    A: mov.u32 %r1, 4;
    B: add.u32 %r3, %r1, %r0; add.u32 %r4, %r2, %r5;
    """)
    found = Module.parse(text).kernels["k"]
    doubtful = maybe_uninitialised(found)
    assert list(doubtful.values()) == [["%r2", "%r5"]]
    assert found.instructions[next(iter(doubtful))].text.startswith("add.u32 %r4")


# --- launching


def test_grid_and_block_dimensions() -> None:
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"]
    lines = [f"mov.u32 %r{i}, {name};" for i, name in enumerate(names)]
    body = (
        "\n".join(lines)
        + """
      mad.lo.u32 %r6, %r2, 3, %r1; mad.lo.u32 %r6, %r6, 5, %r0;
      mad.lo.u32 %r7, %r5, 3, %r4; mad.lo.u32 %r7, %r7, 2, %r3;
      mad.lo.u32 %r7, %r7, 30, %r6; mul.wide.u32 %rd0, %r7, 32; add.s64 %rd0, %rd0, %p0;
      st.global.v2.u32 [%rd0], {%r0, %r1}; st.global.v2.u32 [%rd0+8], {%r2, %r3};
      st.global.v2.u32 [%rd0+16], {%r4, %r5};
    """
    )
    for seed in (None, 3):
        out = np.zeros((2, 3, 2, 2, 3, 5, 8), np.uint32)  # blocks z, y, x, threads z, y, x
        launch(Module.parse(kernel(body)), "k", (2, 3, 2), (5, 3, 2), [out], seed=seed)
        wanted = np.indices(out.shape[:6])[[5, 4, 3, 2, 1, 0]]
        assert np.array_equal(np.moveaxis(out[..., :6], -1, 0), wanted)


@pytest.mark.parametrize(
    ("grid", "threads", "options", "words"),
    [
        (1, 1025, {}, "1025 threads"),
        (0, 32, {}, "grid 0"),
        ((1, 1, 1, 1), 32, {}, "grid"),
        (1, 32, {"shared_bytes": 1 << 20}, "shared memory"),
    ],
)
def test_impossible_launches(grid, threads, options: dict, words: str) -> None:
    with pytest.raises(PtxError, match=words):
        launch(Module.parse(kernel("")), "k", grid, threads, [np.zeros(1)], **options)


def test_launch_bounds_are_kept() -> None:
    text = kernel("").replace(") {", ")\n.maxntid 64, 1, 1\n{", 1)
    launch(Module.parse(text), "k", 1, 64, [np.zeros(1)])
    with pytest.raises(PtxError, match="65 threads per block; k allows 64"):
        launch(Module.parse(text), "k", 1, 65, [np.zeros(1)])


def test_unknown_kernels_list_the_known_ones() -> None:
    with pytest.raises(PtxError, match="no kernel 'x'; there are k"):
        launch(Module.parse(kernel("")), "x", 1, 1, [])


def test_seeds_change_the_order_and_repeat_themselves() -> None:
    # Warps draw tickets: who comes first depends on the schedule.
    body = """
      and.b32 %r1, %tid, 31; setp.ne.u32 %q0, %r1, 0; @%q0 bra DONE;
      atom.global.add.u32 %r0, [%p0], 1; shr.u32 %r2, %tid, 5;
      mov.u32 %r3, %ctaid.x; mad.lo.u32 %r2, %r3, 8, %r2;
      mul.wide.u32 %rd0, %r2, 4; add.s64 %rd0, %rd0, %p1; st.global.u32 [%rd0], %r0;
    DONE:
    """

    def order(seed: int) -> tuple:
        tickets = np.zeros(16, np.uint32)
        run(body, np.zeros(1, np.uint32), tickets, threads=256, grid=2, seed=seed)
        assert sorted(tickets.tolist()) == list(range(16))
        return tuple(tickets.tolist())

    orders = [order(seed) for seed in range(6)]
    assert orders == [order(seed) for seed in range(6)]
    assert len(set(orders)) == 6
    assert any(first[0] > first[8] for first in orders)  # the second block may come first


def test_blocks_that_meet_through_atomics_overtake_one_another() -> None:
    # Each block draws two tickets. In lockstep every first ticket would come before every second.
    body = """
      atom.global.add.u32 %r0, [%p0], 1; atom.global.add.u32 %r1, [%p0], 1;
      mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd0, %r2, 8; add.s64 %rd0, %rd0, %p1;
      st.global.v2.u32 [%rd0], {%r0, %r1};
    """
    found = []
    for seed in range(8):
        tickets = np.zeros((2, 2), np.uint32)
        run(body, np.zeros(1, np.uint32), tickets, threads=1, grid=2, seed=seed)
        found.append(tickets.tolist())
    assert [[0, 1], [2, 3]] in found
    assert [[2, 3], [0, 1]] in found


def test_loops_with_a_different_length_in_each_lane() -> None:
    body = """
      mov.u32 %r0, 0; mov.u32 %r1, %tid;
    LOOP: add.u32 %r0, %r0, %r1; setp.eq.u32 %q0, %r1, 0; @%q0 bra OUT;
      sub.u32 %r1, %r1, 1; bra LOOP;
    OUT: shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;
      mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p0; st.global.u32 [%rd0], %r2;
    """
    for seed in (None, 1):
        out = np.zeros(64, np.uint32)
        run(body, out, threads=64, seed=seed)
        lane = np.arange(64) ^ 1
        assert np.array_equal(out, lane * (lane + 1) // 2)


# --- statistics


def traffic(body: str, *arrays: np.ndarray, **options):
    options = {"threads": 32, "shared": TILE, "profile": True, **options}
    return run(body, *arrays, **options).statistics


@pytest.mark.parametrize(
    ("stride", "size", "sectors", "ideal"),
    [(4, 4, 4, 4), (8, 4, 8, 4), (32, 4, 32, 4), (0, 4, 1, 1), (16, 16, 16, 16), (64, 16, 32, 16)],
)
def test_sectors_of_global_accesses(stride: int, size: int, sectors: int, ideal: int) -> None:
    registers = {4: "%r0", 16: "{%r0, %r1, %r2, %r3}"}[size]
    kind = {4: "u32", 16: "v4.u32"}[size]
    body = f"""
      mul.wide.u32 %rd0, %tid, {stride}; add.s64 %rd0, %rd0, %p0;
      ld.global.{kind} {registers}, [%rd0];
    """
    statistics = traffic(body, np.zeros(4096, np.uint8), threads=64)
    (access,) = statistics.accesses.values()
    warps = 2
    assert (access.transactions, access.ideal) == (warps * sectors, warps * ideal)
    assert access.bytes == statistics.global_read == 64 * size
    distinct = size if stride == 0 else 64 * size
    assert statistics.unique_bytes == {"read": distinct, "written": 0}


def test_sectors_across_a_boundary() -> None:
    # 32 lanes of 4 bytes that begin in the middle of a sector touch five of them
    body = "mul.wide.u32 %rd0, %tid, 4; add.s64 %rd0, %rd0, %p0; ld.global.u32 %r0, [%rd0+16];"
    (access,) = traffic(body, np.zeros(256, np.uint8)).accesses.values()
    assert (access.transactions, access.ideal) == (5, 4)


@pytest.mark.parametrize(
    ("stride", "size", "passes", "ideal"),
    [
        (4, 4, 1, 1), (8, 4, 2, 1), (128, 4, 32, 1), (0, 4, 1, 1), (132, 4, 1, 1), (12, 4, 1, 1),
        (8, 8, 2, 2), (16, 16, 4, 4), (128, 16, 32, 4), (144, 16, 4, 4), (32, 16, 8, 4),
    ],
)  # fmt: skip
def test_bank_conflicts(stride: int, size: int, passes: int, ideal: int) -> None:
    kind, value = {
        4: ("u32", "%r0"),
        8: ("v2.u32", "{%r0, %r0}"),
        16: ("v4.u32", "{%r0, %r0, %r0, %r0}"),
    }[size]
    body = f"""
      mov.u32 %r0, 7; mov.u32 %r1, tile; mad.lo.u32 %r1, %tid, {stride}, %r1;
      st.shared.{kind} [%r1], {value};
    """
    statistics = traffic(body, np.zeros(1), shared=TILE.replace("4096", "8192"))
    (access,) = statistics.accesses.values()
    assert (access.transactions, access.ideal) == (passes, ideal)
    assert statistics.bank_conflicts == passes - ideal


def test_matrix_loads_count_bank_passes_too() -> None:
    body = """
      mov.u32 %r0, tile; mad.lo.u32 %r1, %tid, 16, %r0; mov.u32 %r2, 0;
      st.shared.v4.u32 [%r1], {{%r2, %r2, %r2, %r2}};
      st.shared.v4.u32 [%r1+512], {{%r2, %r2, %r2, %r2}};
      st.shared.v4.u32 [%r1+1024], {{%r2, %r2, %r2, %r2}}; bar.sync 0;
      and.b32 %r3, %tid, 7; mad.lo.u32 %r3, %r3, {}, %r0;
      ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r3];
    """
    for pitch, passes in ((16, 1), (144, 1), (128, 8), (64, 4)):
        accesses = traffic(body.format(pitch), np.zeros(1)).accesses.values()
        (matrix,) = [a for a in accesses if a.instruction.parts[0] == "ldmatrix"]
        assert (matrix.transactions, matrix.ideal) == (passes, 1), pitch


def test_instructions_are_counted_per_warp() -> None:
    body = """
      setp.ge.u32 %q0, %tid, 32; @%q0 bra SKIP; add.u32 %r0, %tid, 1;
    SKIP: bar.sync 0; setp.eq.u32 %q1, %tid, 5; @%q1 mul.lo.u32 %r1, %tid, %tid;
    """
    for seed in (None, 1):
        statistics = run(body, np.zeros(1), threads=96, grid=2, seed=seed).statistics
        assert statistics.opcodes["add.u32"] == 2
        assert statistics.opcodes["bar.sync"] == 6
        assert statistics.opcodes["mul.lo.u32"] == 6
        assert statistics.barriers == 2
        assert statistics.blocks == 2
        assert statistics.instructions == sum(statistics.opcodes.values())


# --- command line


def test_the_command_line_lists_and_counts(tmp_path, capsys) -> None:
    body = "mul.wide.u32 %rd0, %tid, 64; add.s64 %rd0, %rd0, %p0; ld.global.u32 %r0, [%rd0];"
    file = tmp_path / "k.ptx"
    file.write_text(kernel(body))
    assert main(["list", str(file)]) == 0
    assert "k(.u64): 6 instructions, 0 mma" in capsys.readouterr().out
    run_it = ["stats", str(file), "k", "--threads", "32", "--argument"]
    assert main([*run_it, "zeros:2048"]) == 0
    out = capsys.readouterr().out
    assert "128 bytes read (128 distinct)" in out
    assert "coalescing 0.12" in out
    assert main([*run_it, "zeros:1000"]) == 1
    assert "VIOLATION (1 times) out of bounds" in capsys.readouterr().out
    assert main([*run_it, "what:7"]) == 2
    assert "--argument 'what:7'" in capsys.readouterr().err


def test_reports_list_violations_and_count_repetitions() -> None:
    body = """
      mov.u32 %r9, 0;
    LOOP: ld.global.u32 %r0, [%p0+8]; add.u32 %r9, %r9, 1; setp.lt.u32 %q0, %r9, 3; @%q0 bra LOOP;
    """
    report = run(body, np.zeros(1, np.uint32), raises=False)
    assert [violation.kind for violation in report] == [Kind.BOUNDS]
    assert list(report.counts.values()) == [3]
