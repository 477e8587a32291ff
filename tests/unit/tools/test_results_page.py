"""The page says what the cells say, and the committed page is the committed JSON's."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.errors import DataError, MissingInputError
from tools.results.catalogue import published
from tools.results.page import CellFigures, Made, ModelInfo, Results, SetInfo, render, spread
from tools.results.run import read_results, render_docs

DOCS = Path(__file__).parents[3] / "docs"


def cell(seed: int, image: float | None, pixel: float | None, minutes: float = 2.0) -> CellFigures:
    return CellFigures(
        dataset="knobs",
        model="first",
        seed=seed,
        fingerprint=f"{seed:064x}",
        finished=f"2026-01-0{seed + 2}",
        figures={
            "image_auroc": image,
            "pixel_auroc": pixel,
            "pixel_auroc_30": pixel,
            "aupro_30": pixel,
        },
        parameters=2_040_000,
        macs=690_000_000,
        training_minutes=minutes,
    )


def results(*cells: CellFigures, galleries: dict[str, str] | None = None) -> Results:
    return Results(
        made=Made(utc="2026-01-02T03:04:05", machine="a box", command="make results", threads=2),
        seeds=3,
        sets=(
            SetInfo(
                name="knobs",
                train=20,
                test_good=5,
                test_anomalous=7,
                masks=True,
                curves="roc-knobs.svg",
                galleries=galleries or {},
            ),
        ),
        models=(
            ModelInfo(name="first", title="the first", published={"knobs": "image .9 (Table 1)"}),
            ModelInfo(name="second", title="the second"),
        ),
        cells=cells,
        milliseconds={"knobs": {"first": 12.34}},
    )


def row(page: str, model: str) -> list[str]:
    """The row of a model in the set's table (its last on the page)."""
    lines = [line for line in page.splitlines() if line.startswith(f"| `{model}`")]
    return [part.strip() for part in lines[-1].strip("|").split("|")]


def test_a_row_holds_median_and_range() -> None:
    page = render(
        results(cell(0, 0.9, 0.8, 2.0), cell(1, 0.95, 0.8, 4.0), cell(2, 0.7, 0.8, 3.0)),
        published(),
    )
    assert row(page, "first") == [
        "`first`",
        "0.9000 (0.7000..0.9500)",
        "0.8000",
        "0.8000",
        "0.8000",
        "2.04 M",
        "0.69 G",
        "12.3",
        "3.0 (2.0..4.0)",
        "3",
        "image .9 (Table 1)",
    ]


def test_a_model_without_cells_is_not_run_and_keeps_the_tables_shape() -> None:
    page = render(results(cell(0, 0.9, 0.8)), published())
    assert row(page, "second")[1] == "not run"
    assert len(row(page, "second")) == len(row(page, "first"))


def test_a_figure_that_a_seed_lacks_is_not_averaged_over_the_others() -> None:
    page = render(results(cell(0, None, 0.8), cell(1, 0.9, 0.8)), published())
    assert row(page, "first")[1] == "-"


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.5], "0.50"), ([0.25, 0.75], "0.50 (0.25..0.75)"), ([0.501, 0.502], "0.50"), ([], "-")],
)
def test_spread(values: list[float], text: str) -> None:
    assert spread(values, "{:.2f}".format) == text


def test_pictures_are_shown_where_there_are_some() -> None:
    page = render(results(galleries={"first": "line-first.jpg"}), published())
    assert "](results/roc-knobs.svg)" in page
    assert "](results/line-first.jpg)" in page


def test_every_published_figure_is_on_the_page() -> None:
    page = render(results(), published())
    for figure in published().figures:
        assert f"| {figure.method} | {figure.on} |" in page
        assert figure.source in page


def test_the_committed_page_is_current(tmp_path: Path) -> None:
    made = render(read_results(DOCS / "results" / "results.json"), published())
    assert made == (DOCS / "results.md").read_text(encoding="utf-8")


def test_what_the_page_shows_is_committed_and_nothing_but_the_lines_pictures() -> None:
    """Pictures of real sets may not enter the repository; ROC curves hold no picture."""
    contents = read_results(DOCS / "results" / "results.json")
    shown = {name for info in contents.sets for name in (info.curves, *info.galleries.values())}
    files = {path.name for path in (DOCS / "results").iterdir()}
    assert files == {"results.json"} | (shown - {None})
    photographs = {name for name in files if not name.endswith((".svg", ".json"))}
    assert all(name.startswith("line-") for name in photographs)


def test_a_page_is_rendered_anew_from_its_json(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    contents = results(cell(0, 0.9, 0.8))
    path = tmp_path / "results" / "results.json"
    path.write_text(contents.model_dump_json(), encoding="utf-8")
    render_docs(tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == render(contents, published())


def test_missing_and_damaged_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(MissingInputError, match="make results"):
        read_results(path)
    path.write_text('{"seeds": 3', encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        read_results(path)
