"""The report's files: complete, escaped, strict JSON, and pictures that show what they claim."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.redness import BOX, SIZE, RednessRunner, write_sample

from metal_edge.data import Sample, load_dataset
from metal_edge.domain import Inspection
from metal_edge.errors import OutputError
from metal_edge.evaluation.evaluate import EvaluationResult, ImageRecord, evaluate, load_view
from metal_edge.evaluation.gallery import COLUMNS, TILE, Row, Scale, Section, draw_gallery, make_row
from metal_edge.evaluation.page import figure_text, render_page
from metal_edge.evaluation.report import choose_pictures, display_scale, write_report
from metal_edge.imaging import heatmap, overlay, read_image, write_png

THRESHOLD = 100 / 255


def result_of(samples: tuple[Sample, ...], threshold: float | None = THRESHOLD) -> EvaluationResult:
    return evaluate(RednessRunner(), samples, SIZE, SIZE, None, threshold=threshold)


class Page(HTMLParser):
    """Collects tags with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_three_files_appear_and_nothing_else(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    out = tmp_path / "deep" / "out"
    seen: list[tuple[int, int]] = []
    write_report(
        out,
        result_of(samples),
        RednessRunner(),
        title="redness",
        details={"Threshold": "At most 1 %"},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert sorted(p.name for p in out.iterdir()) == ["gallery.png", "report.html", "report.json"]
    assert seen[-1] == (len(seen), len(seen))
    content = json.loads((out / "report.json").read_text("ascii"))
    assert content["image_auroc"] == pytest.approx(8 / 9)
    assert content["details"] == {"Threshold": "At most 1 %"}
    page = Page((out / "report.html").read_text("utf-8"))
    for words in ("redness", "At most 1 %", "0.8889", "50.0 % recall", "Missed defects (1)"):
        assert words in page.words
    (picture,) = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert picture is not None
    assert picture.startswith("data:image/png;base64,")


def test_the_page_loads_nothing_and_links_to_the_mistakes(samples: tuple[Sample, ...]) -> None:
    page = Page(render_page("t", {}, result_of(samples), b"png"))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    wrong = [("dent", "001.png"), ("good", "002.png")]
    paths = [s.path for s in samples if (s.label, s.path.name) in wrong]
    assert links == {path.as_uri() for path in paths}


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    label = evil.replace("/", "")  # a folder's name has no slash
    record = ImageRecord(Sample(tmp_path / f"{label}.png", label), None, None)
    result = unscored(record)
    page = Page(render_page(evil, {evil: evil}, result, b""))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count("alert(1)") >= 5


def unscored(record: ImageRecord) -> EvaluationResult:
    figures = dict.fromkeys(
        ("image_auroc", "pixel_auroc", "pixel_auroc_30", "aupro_30", "image_f1")
    )
    reasons = dict.fromkeys(figures, record.sample.label)
    return EvaluationResult(
        (record,), 8, 8, None, None, confusion=None, not_computed=reasons, **figures
    )


def test_mistakes_and_examples_are_chosen(samples: tuple[Sample, ...]) -> None:
    choices = {title: records for title, _, records in choose_pictures(result_of(samples))}
    assert list(choices) == ["Examples", "Missed defects", "False rejects"]
    labels = [r.sample.label for r in choices["Examples"]]
    assert labels == ["good", "good", "dent", "dent", "scratch"]
    assert [r.sample.path.name for r in choices["Missed defects"]] == ["001.png"]


def test_the_worst_miss_comes_first_and_lists_are_bounded(tmp_path: Path) -> None:
    for index in range(7):
        write_sample(tmp_path, "dent", f"{index}", 90 - index, truth=[BOX])
    write_sample(tmp_path, "good", "0", 40, truth=None)
    write_png(tmp_path / "train/good/0.png", np.full((8, 8, 3), 40, np.uint8))
    result = result_of(load_dataset(tmp_path).test)
    (misses,) = [c for c in choose_pictures(result) if c[0] == "Missed defects"]
    assert misses[1] == "worst 4 of 7"
    assert [r.sample.path.stem for r in misses[2]] == ["6", "5", "4", "3"]


def test_colours_follow_the_threshold_or_say_what_instead(samples: tuple[Sample, ...]) -> None:
    assert display_scale(result_of(samples)) == Scale(THRESHOLD, "threshold")
    instead = display_scale(result_of(samples, None))
    assert (instead.value, instead.name) == (pytest.approx(120 / 255), "highest good score")
    below_zero = display_scale(result_of(samples, -1.0))
    assert below_zero.name == "highest good score"


def tiles_of(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels inside one tile's border, for square images."""
    top = 118 + 58 + row * (TILE + 12)
    left = 36 + 250 + column * (TILE + 12)
    return sheet[top + 1 : top + TILE - 1, left + 1 : left + TILE - 1]


def test_each_column_shows_its_picture() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (TILE, TILE, 3), dtype=np.uint8)
    truth = np.zeros((TILE, TILE), np.bool_)
    truth[50:90, 60:100] = True
    anomaly_map = rng.random((TILE, TILE)).astype(np.float32)
    record = ImageRecord(Sample(Path("part.png"), "dent"), 0.9, None)
    row = Row(record, image, truth, anomaly_map)
    sheet = draw_gallery("title", "subtitle", [Section("s", "n", [row])], Scale(0.5, "threshold"))
    inner = (slice(1, -1), slice(1, -1))
    expected = [
        image,
        np.where(truth[..., None], 255, 0).repeat(3, axis=2),
        heatmap(anomaly_map, 0.5),
        overlay(image, anomaly_map, 0.5, truth),
    ]
    for column, picture in enumerate(expected):
        assert np.array_equal(tiles_of(sheet, 0, column), picture[inner]), COLUMNS[column]


def test_a_script_that_the_font_lacks_becomes_question_marks() -> None:
    row = Row(
        ImageRecord(Sample(Path("a.png"), "good"), 0.1, None),
        np.zeros((TILE, TILE, 3), np.uint8),
        None,
        np.zeros((8, 8), np.float32),
    )
    sections, scale = [Section("s", "n", [row])], Scale(0.5, "threshold")
    kana, marks = (draw_gallery(title, "", sections, scale) for title in ("aひず", "a??"))
    assert np.array_equal(kana, marks)


class NanRunner(RednessRunner):
    def run(self, images: np.ndarray) -> list[Inspection]:
        return [Inspection(i.anomaly_map * np.float32("nan"), i.score) for i in super().run(images)]


def test_a_model_that_answers_nan_is_reported_not_drawn(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    runner = NanRunner()
    view = load_view(samples[0], SIZE, SIZE, None)
    record = ImageRecord(samples[0], None, None)
    row = make_row(record, view, runner.run(view.model_input[None])[0].anomaly_map)
    assert row.anomaly_map is None  # a heat map of NaN would look like a finding
    result = evaluate(runner, samples, SIZE, SIZE, None, threshold=THRESHOLD)
    write_report(tmp_path / "out", result, runner, title="broken")
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert "No score (6)" in page.words
    assert "6 images got no score" in page.words
    assert not re.search(r"\bnan\b", (tmp_path / "out" / "report.json").read_text(), re.IGNORECASE)


def test_names_of_any_kind_and_odd_shapes_are_drawn(tmp_path: Path) -> None:
    """Not UTF-8, no Latin script, far too long; very wide and very tall pictures."""
    names = ["caf\udce9", "ひずみ", "n" * 180, "a—b"]
    for index, name in enumerate(names):
        size = [(16, 200), (200, 16), (64, 64), (700, 500)][index]
        write_sample(tmp_path, "good", name, 40, truth=None, size=size)
    write_png(tmp_path / "train/good/0.png", np.full((8, 8, 3), 40, np.uint8))
    result = result_of(load_dataset(tmp_path).test, 30 / 255)  # all listed as false rejects
    write_report(tmp_path / "out", result, RednessRunner(), title="ひずみ " * 60)
    assert "False rejects (4)" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert read_image(tmp_path / "out" / "gallery.png").shape[1] == 1298
    content = json.loads((tmp_path / "out" / "report.json").read_text("ascii"))
    assert {Path(i["path"]).stem for i in content["images"]} == set(names)


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(OutputError, match=r"out/report\.json"):
        write_report(tmp_path / "out", result_of(samples), RednessRunner(), title="t")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1.0, "1.0000"), (0.99997, "0.9999"), (0.86666, "0.8667"), (0.0, "0.0000")],
)
def test_only_a_perfect_figure_reads_as_one(value: float | None, text: str) -> None:
    assert figure_text(value) == text
