"""Table 3's form from figures, and the networks behind its columns."""

from __future__ import annotations

import pytest

from metal_edge.errors import SettingsError
from metal_edge.models.metal import Shape
from tools.ablation import COLUMNS, Row, cell_text, network_of, paper_row, render
from tools.results.catalogue import published

TITLES = [title for title, _, _ in COLUMNS]
TABLE = published().ablation


def lines_of(text: str) -> dict[str, list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [part.strip() for part in row[1:]] for row in rows}


def test_mean_and_spread_are_those_of_the_seeds() -> None:
    assert cell_text([0.9, 0.92, 0.94]) == "0.920 ± 0.020"
    assert cell_text([0.9]) == "0.900"
    assert cell_text([]) == "-"


def test_the_papers_row_stands_below_a_class_of_that_name() -> None:
    values = {title: [0.5 + 0.01 * index] for index, title in enumerate(TITLES)}
    rows = lines_of(render([Row("toothbrush", "normalised", values)], TABLE, "facts"))
    assert rows["toothbrush"][1:] == ["0.500", "0.510", "0.520", "0.530", "0.540", "**0.550**"]
    assert rows["toothbrush, paper"][1:] == ["0.926", "0.949", "0.975", "0.966", "0.967", "0.971"]


def test_a_class_is_known_under_its_usual_spellings() -> None:
    assert paper_row("Metal nut", TABLE) == paper_row("metal_nut", TABLE)
    assert paper_row("Metal nut", TABLE) is not None
    assert paper_row("gears", TABLE) is None
    head_ct = paper_row("head_ct", TABLE)
    assert head_ct is not None
    assert head_ct["Squares + Rows"].startswith("0.863")


def test_missing_columns_are_dashes_and_never_best() -> None:
    rows = lines_of(render([Row("gears", "n", {TITLES[2]: [0.1]})], TABLE, "facts"))
    assert rows["gears"][1:] == ["-", "-", "**0.100**", "-", "-", "-"]
    nothing = lines_of(render([Row("gears", "n", {})], TABLE, "facts"))
    assert nothing["gears"][1:] == ["-"] * 6


def test_the_mean_counts_whole_rows_of_one_figure() -> None:
    def row(name: str, figure: str, value: float) -> Row:
        return Row(name, figure, {title: [value] for title in TITLES})

    sets = [row("a", "normalised", 0.8), row("b", "normalised", 0.9), row("c", "image", 0.1)]
    broken = Row("d", "normalised", {TITLES[0]: [0.0]})
    rows = lines_of(render([*sets, broken], TABLE, "facts"))
    assert rows["Mean of 2"] == ["normalised", *["0.850"] * 6]


@pytest.mark.parametrize("mask", ["off", "zero", "neg_inf"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_column_is_a_network(mask: str, blocks: int) -> None:
    for _, shapes, _ in COLUMNS:
        config = network_of(shapes, mask, blocks)
        assert config.shapes == tuple(Shape(shape) for shape in shapes)
        assert (str(config.mask), config.blocks) == (mask, blocks)


def test_a_mask_of_another_version_is_an_error_in_words() -> None:
    with pytest.raises(SettingsError, match="choose another --mask"):
        network_of(("squares",), "of-tomorrow", 1)
