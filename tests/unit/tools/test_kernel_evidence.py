"""The evidence's tables and where they are written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from metal_edge.errors import DataError, MissingInputError
from tools.bench.page import replace_part
from tools.kernels.build import Resources
from tools.kernels.evidence import __main__ as command
from tools.kernels.evidence.compiled import Kernel, Launch
from tools.kernels.evidence.measure import Traffic
from tools.kernels.evidence.roofline import Work
from tools.kernels.evidence.tables import Measured, floors_table, kernels_table, traffic_table

PAGE = Path(__file__).parents[3] / "docs" / "kernels.md"
PARTS = ("compiled", "traffic", "floors")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]


def kernel() -> Kernel:
    return Kernel(
        "masked_attention_f16_flash_d32",
        Launch(threads=128, shared=25600),
        {
            "sm_87": Resources(registers=128, spill_stores=4, spill_loads=8, stack=16, shared=0),
            "sm_110": Resources(registers=120, spill_stores=0, spill_loads=0, stack=16, shared=0),
        },
    )


def test_figures_that_differ_between_architectures_stand_side_by_side() -> None:
    head, _, row = kernels_table([kernel()]).splitlines()
    found = dict(zip(cells(head), cells(row), strict=True))
    assert found["registers"] == "128 / 120"
    assert found["spills, B"] == "12 / 0"
    assert found["stack, B"] == "16"
    assert found["shared, B"] == "25600"
    assert found["blocks per SM"] == "4"
    assert found["bound by"] == "registers"
    assert found["HMMA"] == "-", "not counted is not 0"


def test_instructions_are_counted_by_family() -> None:
    one = kernel()
    one.instructions = {
        "sm_87": Counter({"HMMA.16816.F32": 30, "HMMA.1688.F32": 2, "IADD3": 5}),
        "sm_110": Counter({"HMMA.16816.F32": 32, "IADD3": 4}),
    }
    head, _, row = kernels_table([one]).splitlines()
    found = dict(zip(cells(head), cells(row), strict=True))
    assert (found["HMMA"], found["IMMA"], found["instructions"]) == ("32", "0", "37 / 36")


def measured(name: str, kernel_name: str) -> Measured:
    done = Traffic(kernel_name, 16, 128, 0, 4, 96_000, 8_000, 0.5, 100, 7, 12)
    return Measured(name, "N 64", "fp16", Work(48_000, 8_000, 1_000_000, 0, 10), done, 3, 16)


def test_traffic_stands_beside_what_is_needed() -> None:
    head, _, flash, short = traffic_table(
        [measured("a", "masked_attention_f16_flash_d32"), measured("b", "masked_attention_x_short")]
    ).splitlines()
    assert cells(head)[4:8] == ["read, KB", "at least", "written, KB", "at least"]
    assert cells(flash)[4:8] == ["96.0", "48.0", "8.0", "8.0"]
    assert cells(flash)[8:11] == ["0.50", "7 of 100", "3 of 16"]
    assert cells(short)[10] == "all", "the short kernels skip nothing"


def test_a_floor_is_given_for_every_board_with_its_cause() -> None:
    row = cells(floors_table([measured("a", "k")]).splitlines()[2])
    assert row[:2] == ["a", "fp16"]
    assert row[2] == "0.55 memory"  # 56 KB at 102 GB/s
    assert len(row) == 6


def test_the_tables_go_into_their_places_and_nothing_else_changes(tmp_path: Path) -> None:
    before = PAGE.read_text(encoding="utf-8")
    (tmp_path / "kernels.md").write_text(before, encoding="utf-8")
    path = command._write(tmp_path, dict.fromkeys(PARTS, "| new |"))
    after = path.read_text(encoding="utf-8")
    assert after.count("| new |") == 3
    for name in PARTS:
        before, after = (replace_part(text, name, "") for text in (before, after))
    assert before == after


def test_a_page_that_is_not_there_or_has_no_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"kernels\.md does not exist"):
        command._write(tmp_path, {"floors": ""})
    (tmp_path / "kernels.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(DataError, match="no place for floors"):
        command._write(tmp_path, {"floors": ""})
