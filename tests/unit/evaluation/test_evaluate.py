"""Evaluation of a runner whose maps are known, on real files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from support.redness import SIZE, RednessRunner, write_sample
from support.tiny_bundle import write_model

from metal_edge.data import Sample, load_dataset
from metal_edge.domain import Inspection, Verdict
from metal_edge.errors import DataError
from metal_edge.evaluation.evaluate import EvaluationResult, evaluate, load_view, mistakes
from metal_edge.evaluation.metrics import Confusion
from metal_edge.imaging import write_png
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def run(
    samples: Sequence[Sample],
    runner: RednessRunner | None = None,
    threshold: float | None = 100 / 255,
    batch: int = 8,
) -> EvaluationResult:
    return evaluate(
        runner or RednessRunner(), samples, SIZE, SIZE, None, threshold=threshold, batch=batch
    )


def test_figures_by_hand(samples: tuple[Sample, ...]) -> None:
    """Scores x255: good 40, 40, 120; dents 200, 60; scratch 220. Threshold 100."""
    result = run(samples)
    assert result.confusion == Confusion(tp=2, fp=1, tn=2, fn=1)
    assert result.image_f1 == pytest.approx(2 / 3)
    assert result.image_auroc == pytest.approx(8 / 9)  # only 60 < 120 is the wrong way round
    assert result.labels["dent"].reject_rate == 0.5
    assert result.labels["scratch"].reject_rate == 1.0
    assert result.labels["good"].rejected == 1
    assert result.not_computed == {}
    missed, false_rejects, unknown = mistakes(result).values()
    assert [(r.sample.label, r.sample.path.name) for r in missed] == [("dent", "001.png")]
    assert [r.sample.path.name for r in false_rejects] == ["002.png"]
    assert unknown == []


def test_mistakes_are_sorted_worst_first(samples: tuple[Sample, ...]) -> None:
    everything_fails = run(samples, threshold=30 / 255)
    names = [r.sample.path.name for r in mistakes(everything_fails)["False rejects"]]
    assert names[0] == "002.png"
    assert len(names) == 3
    everything_passes = run(samples, threshold=1.0)
    scores = [r.score for r in mistakes(everything_passes)["Missed defects"]]
    assert scores == pytest.approx([60 / 255, 200 / 255, 220 / 255])


def test_pixel_figures_use_the_masks_own_resolution(samples: tuple[Sample, ...]) -> None:
    """Against scikit-learn on maps interpolated by hand from 16 x 16 to 64 x 64."""

    def enlarged(coarse: NDArray[np.float32]) -> NDArray[np.float64]:
        at = (np.arange(64) + 0.5) / 4 - 0.5
        columns = np.array([np.interp(at, np.arange(16), row) for row in coarse])
        return np.array([np.interp(at, np.arange(16), column) for column in columns.T]).T

    scores, truth = [], []
    for sample in samples:
        view = load_view(sample, SIZE, SIZE, None)
        assert view.truth is not None
        assert view.truth.shape == (64, 64)
        inspection = RednessRunner().run(view.model_input[None])[0]
        scores.append(enlarged(inspection.anomaly_map).ravel())
        truth.append(view.truth.ravel())
    exact = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    result = run(samples)
    # Float32 interpolation may split ties of flat areas; bins restore them.
    assert result.pixel_auroc == pytest.approx(exact, abs=2e-3)
    assert result.pixel_auroc_30 is not None
    assert 0.5 < result.pixel_auroc_30 < 1
    assert result.aupro_30 is not None
    assert 0.5 < result.aupro_30 < 1


@pytest.mark.parametrize("batch", [1, 2, 4, 6, 100])
def test_batches_do_not_change_the_result(samples: tuple[Sample, ...], batch: int) -> None:
    runner = RednessRunner()
    assert run(samples, runner, batch=batch).to_dict() == run(samples).to_dict()
    assert sum(runner.batches) == 6
    assert max(runner.batches) == min(batch, 6)


def test_a_real_onnx_model_is_evaluated(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    """Its score is the brightest cell's mean over the channels, 40 in two of them."""
    write_model(tmp_path / "model.onnx")
    with OnnxRuntimeRunner(tmp_path / "model.onnx") as runner:
        result = evaluate(runner, samples, SIZE, SIZE, None, threshold=0.3)
    by_name = {(r.sample.label, r.sample.path.stem): r for r in result.records}
    assert by_name["dent", "000"].score == pytest.approx((200 + 80) / 3 / 255, rel=1e-5)
    assert by_name["dent", "000"].verdict is Verdict.REJECT
    assert by_name["good", "002"].score == pytest.approx((120 + 80) / 3 / 255, rel=1e-5)
    assert by_name["good", "002"].verdict is Verdict.PASS
    assert result.not_computed == {}


def test_progress_reaches_the_end(samples: tuple[Sample, ...]) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        RednessRunner(),
        samples,
        SIZE,
        SIZE,
        None,
        threshold=None,
        batch=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 6), (6, 6)]


def test_a_crop_moves_image_and_truth_alike(tmp_path: Path) -> None:
    """A defect in one quarter, cropped to that quarter: still found perfectly."""
    box = (slice(40, 48), slice(36, 60))
    write_png(tmp_path / "train/good/0.png", np.full((64, 64, 3), 40, np.uint8))
    write_sample(tmp_path, "dent", "000", 250, truth=[box])
    sample = load_dataset(tmp_path).test[0]
    runner = RednessRunner(64)
    result = evaluate(runner, [sample], 64, 64, (32, 32, 32, 32), threshold=0.5)
    view = load_view(sample, 64, 64, (32, 32, 32, 32))
    assert view.truth is not None
    assert view.image.shape == (32, 32, 3)
    assert np.array_equal(view.truth, view.image[..., 0] == 250)
    assert result.pixel_auroc is not None
    assert result.pixel_auroc > 0.99


class BrokenRunner(RednessRunner):
    """Spoils the score, or one pixel of the map, of images redder than 210."""

    def __init__(self, score: float | None = None, pixel: float | None = None) -> None:
        super().__init__()
        self.score, self.pixel = score, pixel

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        out = []
        for inspection in super().run(images):
            bad = inspection.score > 210 / 255
            if bad and self.pixel is not None:
                inspection.anomaly_map[0, 0] = self.pixel
            score = self.score if bad and self.score is not None else inspection.score
            out.append(Inspection(inspection.anomaly_map, score))
        return out


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "pixel"])
@pytest.mark.parametrize("threshold", [0.4, None])
def test_a_number_that_is_not_finite_is_unknown_and_withholds_the_figures(
    samples: tuple[Sample, ...], bad: float, where: str, threshold: float | None
) -> None:
    result = run(samples, BrokenRunner(**{where: bad}), threshold)
    (record,) = [r for r in result.records if r.sample.label == "scratch"]
    assert (record.score, record.verdict) == (None, Verdict.UNKNOWN)
    assert (result.image_auroc, result.image_f1) == (None, None)
    assert result.not_computed["image_auroc"] == "1 images got no score"
    assert (result.aupro_30 is None) == (where == "pixel")
    assert result.labels["scratch"].unknown == 1
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["counts"]["unknown"] == 1


def test_without_a_threshold_there_are_scores_but_no_verdicts(samples: tuple[Sample, ...]) -> None:
    result = run(samples, threshold=None)
    assert {r.verdict for r in result.records} == {None}
    assert result.image_auroc == pytest.approx(8 / 9)
    assert (result.image_f1, result.confusion) == (None, None)
    assert result.not_computed == {"image_f1": "no threshold"}
    assert result.to_dict()["per_defect"]["dent"]["recall"] is None


def test_without_masks_there_are_no_pixel_figures(samples: tuple[Sample, ...]) -> None:
    result = run([Sample(s.path, s.label) for s in samples])
    assert result.image_auroc is not None
    assert result.not_computed == dict.fromkeys(
        ("pixel_auroc", "pixel_auroc_30", "aupro_30"), "no test image has a ground-truth mask"
    )


def test_a_defect_without_a_mask_leaves_pixel_figures_alone(samples: tuple[Sample, ...]) -> None:
    """Counting its pixels as good would blame the model for finding it."""
    masked = [s for s in samples if s.label != "scratch"]
    bare = [Sample(s.path, s.label) for s in samples if s.label == "scratch"]
    assert run([*masked, *bare]).aupro_30 == run(masked).aupro_30


def test_one_class_alone(samples: tuple[Sample, ...]) -> None:
    good = run([s for s in samples if s.good])
    assert (good.image_auroc, good.image_f1) == (None, None)
    assert good.not_computed["image_auroc"] == "no anomalous test image"
    assert good.confusion == Confusion(tp=0, fp=1, tn=2, fn=0)
    bad = run([s for s in samples if not s.good])
    assert bad.not_computed == {"image_auroc": "no good test image"}
    assert bad.to_dict()["false_reject_rate"] is None


def test_the_dictionary_has_the_agreed_keys(samples: tuple[Sample, ...]) -> None:
    content = run(samples).to_dict()
    figures = {"image_auroc", "pixel_auroc", "pixel_auroc_30", "aupro_30", "image_f1"}
    assert figures <= content.keys()
    assert content["counts"] == {
        "images": 6,
        "good": 3,
        "anomalous": 3,
        "with_masks": 3,
        "unknown": 0,
    }
    assert content["false_reject_rate"] == pytest.approx(1 / 3)
    assert content["per_defect"]["dent"] == {
        "images": 2,
        "rejected": 1,
        "unknown": 0,
        "recall": 0.5,
    }
    assert [image["verdict"] for image in content["images"]].count("reject") == 3


def test_an_empty_mask_on_a_defect_is_refused(data: Path) -> None:
    mask = data / "ground_truth" / "dent" / "000_mask.png"
    write_png(mask, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"000_mask\.png marks no defect"):
        run(load_dataset(data).test)


def test_a_crop_outside_the_image_names_the_image(samples: tuple[Sample, ...]) -> None:
    with pytest.raises(DataError, match=r"test/dent/000\.png: crop 60,0,32,32"):
        evaluate(RednessRunner(), samples, SIZE, SIZE, (60, 0, 32, 32), threshold=None)


def test_what_cannot_be_evaluated_is_refused(samples: tuple[Sample, ...]) -> None:
    with pytest.raises(DataError, match="no test images"):
        run([])
    with pytest.raises(ValueError, match="runner takes"):
        evaluate(RednessRunner(), samples, 64, SIZE, None, threshold=None)
    with pytest.raises(ValueError, match="threshold"):
        run(samples, threshold=math.nan)
    with pytest.raises(ValueError, match="batch"):
        run(samples, batch=0)
