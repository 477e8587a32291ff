"""The baseline against brute force: its averages, its neighbours, its coreset, its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metal_edge.export.onnx_model import check_parity, onnx_from_model
from metal_edge.models.memory import greedy_coreset
from metal_edge.models.scoring import AnomalyScorer
from tools.results.patchcore import PatchCore


def fitted(model: PatchCore, pictures: Tensor) -> PatchCore:
    with torch.no_grad():
        tokens = model.precompute(pictures[:4]).flatten(0, 1)
        model.fit(tokens, torch.Generator().manual_seed(0), lambda _done, _total: None)
    return model


def covering_radius(points: Tensor, chosen: Tensor) -> float:
    """The largest distance from a point to its nearest chosen one."""
    return float(torch.cdist(points, points[chosen]).amin(dim=1).amax())


def test_a_token_is_the_mean_of_its_window(small_patchcore: PatchCore, pictures: Tensor) -> None:
    with torch.no_grad():
        raw = small_patchcore.extractor.precompute(pictures).numpy()
        tokens = small_patchcore.precompute(pictures).numpy()
    grid = small_patchcore.config.grid
    maps = raw.reshape(-1, grid, grid, raw.shape[-1])
    for row, col in ((0, 0), (0, 2), (1, 1), (3, 3)):
        window = maps[:, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        expected = window.mean(axis=(1, 2))
        np.testing.assert_allclose(tokens[:, row * grid + col], expected, rtol=1e-4, atol=1e-5)


def test_the_map_is_the_distance_to_the_nearest_token_of_the_bank(
    small_patchcore: PatchCore, pictures: Tensor
) -> None:
    model = fitted(small_patchcore, pictures)
    with torch.no_grad():
        target = model.target(model.precompute(pictures))
        error = model.error_map(model(target), target).numpy()
    bank, tokens = model.bank.numpy().astype(np.float64), target.numpy().astype(np.float64)
    for image in range(len(pictures)):
        for token in range(tokens.shape[1]):
            nearest = np.linalg.norm(bank - tokens[image, token], axis=1).min()
            got = error[image].reshape(-1)[token]
            assert got == pytest.approx(nearest, rel=1e-3, abs=1e-5)


def test_a_token_of_the_bank_is_no_anomaly(small_patchcore: PatchCore, pictures: Tensor) -> None:
    model = fitted(small_patchcore, pictures)
    assert len(model.bank) == 32  # half of 4 images x 16 tokens
    with torch.no_grad():
        shown = model.bank[:16][None]
        assert float(model.error_map(model(shown), shown).max()) == 0.0


def test_the_exported_graph_agrees(
    small_patchcore: PatchCore, pictures: Tensor, tmp_path: Path
) -> None:
    model = fitted(small_patchcore, pictures)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_from_model(model).SerializeToString())
    check_parity(model, path, pictures.numpy())


def test_the_mean_score_is_the_mean_of_the_map(
    small_patchcore: PatchCore, pictures: Tensor
) -> None:
    whole = small_patchcore.config.model_copy(update={"score_share": 1.0})
    model = fitted(PatchCore(whole).eval(), pictures)
    with torch.no_grad():
        anomaly_map, score = AnomalyScorer(model)(pictures)
    torch.testing.assert_close(score, anomaly_map.mean(dim=(1, 2)))


@settings(max_examples=40)
@given(
    distinct=st.integers(1, 30),
    copies=st.integers(1, 3),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_the_coreset_chooses_no_token_twice(
    distinct: int, copies: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(distinct, 5, generator=generator).repeat(copies, 1)
    count = max(1, round(share * len(points)))
    chosen = greedy_coreset(points, count, 64, generator)
    assert chosen.unique().numel() == count
    assert chosen.min() >= 0
    assert chosen.max() < len(points)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40))
def test_the_coreset_covers_within_twice_the_optimum(seed: int, count: int) -> None:
    """Of any choice, so of the best of twenty random ones (Gonzalez 1985)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5.0 * torch.randn(6, 8, generator=generator)
    points = centres[torch.randint(6, (200,), generator=generator)]
    points = points + torch.randn(200, 8, generator=generator)
    ours = covering_radius(points, greedy_coreset(points, count, 64, generator))
    chance = [
        covering_radius(points, torch.randperm(200, generator=generator)[:count]) for _ in range(20)
    ]
    assert ours <= 2 * min(chance) + 1e-4


def test_the_projection_keeps_the_cover() -> None:
    """Chosen in 16 of 100 dimensions, the coreset still covers better than chance in all 100."""
    generator = torch.Generator().manual_seed(4)
    basis = torch.randn(6, 100, generator=generator)
    points = torch.randn(400, 6, generator=generator) @ basis
    ours = covering_radius(points, greedy_coreset(points, 40, 16, generator))
    chance = [
        covering_radius(points, torch.randperm(400, generator=generator)[:40]) for _ in range(20)
    ]
    assert ours < np.mean(chance)


def test_the_same_seed_chooses_the_same_tokens() -> None:
    points = torch.randn(80, 100, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        greedy_coreset(points, 20, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [0, 6])
def test_a_coreset_that_cannot_be_chosen_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="cannot choose"):
        greedy_coreset(torch.randn(5, 3), count, 64, torch.Generator())
