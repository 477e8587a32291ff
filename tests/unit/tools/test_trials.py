"""tools.maps and tools.opinions: what they compare is what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.losses import ReconstructionLoss
from metal_edge.models.metal import Metal, MetalConfig
from tools.maps import (
    CORRECTIONS,
    MAPS,
    SCORES,
    Row,
    Trial,
    corrected,
    dissimilarity,
    figures_of,
    judge,
    render,
    score_of,
)
from tools.opinions import opinions_of, products


@pytest.fixture
def trial() -> Trial:
    """32 px noise, in which anomalous images have a white box."""
    noise = np.random.default_rng(3)
    train = torch.from_numpy(noise.integers(80, 120, (6, 32, 32, 3), dtype=np.uint8))
    test = torch.from_numpy(noise.integers(80, 120, (4, 32, 32, 3), dtype=np.uint8))
    box = np.zeros((32, 32), np.bool_)
    box[8:20, 8:20] = True
    test[2:, 8:20, 8:20] = 255
    truths = [np.zeros_like(box)] * 2 + [box, box]
    return Trial(train, test, np.array([False, False, True, True]), truths)


def test_dissimilarity_is_one_minus_the_losss_ssim_where_the_window_fits() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, 24, 24, generator=generator)
    inner = dissimilarity(a, b)[:, 5:-5, 5:-5].mean()
    assert inner.item() == pytest.approx(1 - ReconstructionLoss(24).ssim(a, b).item(), abs=1e-5)


def test_figures_are_perfect_for_the_truth_and_the_worst_for_its_opposite(trial: Trial) -> None:
    truth = torch.from_numpy(np.stack(trial.truths)).float()  # type: ignore[arg-type]
    assert set(figures_of(truth, trial).values()) == {1.0}
    worst = figures_of(-truth, trial)
    assert worst["pixel"] == 0.0
    assert worst["image, mean"] == 0.0


def test_scores_are_means_of_the_highest_share() -> None:
    maps = torch.arange(100.0).reshape(1, 10, 10)
    got = {name: float(score_of(maps, share)[0]) for name, share in SCORES.items()}
    assert got == {"maximum": 99.0, "highest 2 %": 98.5, "mean": 49.5}


def test_corrections_take_the_usual_error_away() -> None:
    usual = torch.tensor([[1.0, 3.0]])
    errors = torch.stack([usual, 2 * usual])
    assert torch.equal(corrected(errors, usual, ""), errors)
    assert torch.equal(corrected(errors, usual, "minus usual")[0], torch.zeros(1, 2))
    over = corrected(errors, usual, "over usual")
    assert torch.allclose(over[1], 2 * over[0])


def test_every_map_and_correction_is_judged(trial: Trial) -> None:
    torch.manual_seed(0)
    model = Metal(MetalConfig(image_size=32, patch_size=8, embedding=16, heads=2, blur_sigma=2.0))
    model.train()
    rows = judge(model, trial, step=7, minutes=0.5)
    assert model.training
    wanted = [f"{name} {how}".strip() for name in MAPS for how in CORRECTIONS]
    assert [row.map for row in rows] == wanted
    assert all(0 <= value <= 1 for row in rows for value in row.figures.values())
    # Untrained, it reconstructs next to nothing: a white box is far off in squares.
    assert rows[0].figures["pixel"] > 0.95


def test_the_table_has_a_line_per_row() -> None:
    rows = [Row(125, 0.51, "squared", {"image, mean": 0.5}), Row(250, 1, "x", {"image, mean": 1})]
    assert render(rows, "facts").splitlines() == [
        "facts",
        "",
        "| step | minutes | map | image, mean |",
        "| --- | --- | --- | --- |",
        "| 125 | 0.5 | squared | 0.500 |",
        "| 250 | 1.0 | x | 1.000 |",
    ]


@pytest.fixture
def fitted() -> tuple[MetalFeatures, Tensor]:
    torch.manual_seed(2)
    config = MetalFeaturesConfig(image_size=64, grid=4, width=16, heads=4, memory=20)
    model = MetalFeatures(config).eval()
    images = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    stored = model.precompute(images)
    model.fit_inputs(stored)
    model.fit_errors(stored)
    return model, images


def test_the_opinions_multiplied_by_their_weights_are_the_model(
    fitted: tuple[MetalFeatures, Tensor],
) -> None:
    model, images = fitted
    opinions = opinions_of(model, images)
    assert list(opinions) == ["context, radius 1", "students", "memory"]
    context, students, memory = opinions.values()
    target = model.target(model.precompute(images))
    with torch.inference_mode():
        whole = model.error_map(model(target), target)
    assert torch.allclose(((context + students + 2 * memory) / 4).exp(), whole, atol=1e-4)


def test_products_are_geometric_means_and_radii_are_only_averaged_with_each_other() -> None:
    logs = {
        name: torch.full((1, 2, 2), value)
        for name, value in {
            "context, radius 1": 0.0,
            "context, radius 4": 2.0,
            "memory": 4.0,
            "students": 6.0,
        }.items()
    }
    got = {name: round(float(value.log()[0, 0, 0]), 4) for name, value in products(logs).items()}
    assert got == {
        "context, radius 1": 0.0,
        "context, radius 4": 2.0,
        "memory": 4.0,
        "students": 6.0,
        "contexts together": 1.0,
        "context, radius 1 x memory": 2.0,
        "context, radius 1 x students": 3.0,
        "memory x students": 5.0,
    }
