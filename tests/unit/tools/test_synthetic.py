"""Synthetic defects: where they are, what they show, and that a head learns to find them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.synthetic import Fill, Head, blob, damaged


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), fill=st.sampled_from(Fill))
def test_only_the_mask_is_changed_and_the_picture_stays_a_picture(seed: int, fill: Fill) -> None:
    noise = np.random.default_rng(seed)
    image, other = noise.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    before = image.copy()
    made, mask = damaged(image, other, fill, noise)
    assert made.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(made[~mask], image[~mask])
    if mask.sum() > 20:
        assert (made[mask] != image[mask]).any()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_blob_is_small(seed: int) -> None:
    assert blob(64, np.random.default_rng(seed)).mean() < 0.35


@pytest.mark.parametrize("size", [32, 48])
def test_the_head_gives_a_logit_per_pixel(size: int) -> None:
    assert Head()(torch.rand(2, 6, size, size)).shape == (2, size, size)


def test_a_head_learns_the_difference_of_its_two_pictures() -> None:
    """A few steps suffice where the reconstruction is the picture without its defect."""
    torch.manual_seed(0)
    noise, head = np.random.default_rng(0), Head(8)
    good = noise.integers(90, 110, (4, 32, 32, 3), dtype=np.uint8)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        made = [damaged(image, good[0], Fill.FLAT, noise) for image in good]
        seen = torch.from_numpy(np.stack([image for image, _ in made])).permute(0, 3, 1, 2) / 255
        clean = torch.from_numpy(good).permute(0, 3, 1, 2) / 255
        masks = torch.from_numpy(np.stack([mask for _, mask in made])).float()
        return torch.cat([seen, clean], dim=1), masks

    for _ in range(60):
        x, wanted = batch()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, wanted = batch()
    found = head(x).sigmoid().detach()
    assert found[wanted > 0].mean() > 3 * found[wanted == 0].mean()
