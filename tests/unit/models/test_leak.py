"""What a mask leaks after training, by the noise test of tools/leak.py: see docs/training.md."""

from __future__ import annotations

import pytest

from metal_edge.models.attention import MaskRule
from metal_edge.models.shapes import Shape
from tools.leak import held_out_r2, small_config

STEPS = 300


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("mask", [MaskRule.ZERO, MaskRule.NEG_INF])
def test_the_papers_own_masks_leak_the_patch_that_they_hide(mask: MaskRule, blocks: int) -> None:
    config = small_config(mask, [Shape.SQUARES], blocks)
    assert held_out_r2(config, steps=STEPS, seed=0) > 0.3


@pytest.mark.parametrize(
    ("shapes", "blocks"), [((Shape.SQUARES,), 1), ((Shape.SQUARES, Shape.ROWS), 2)]
)
def test_zeroleak_leaks_nothing_however_it_is_trained(
    shapes: tuple[Shape, ...], blocks: int
) -> None:
    config = small_config(MaskRule.ZEROLEAK, shapes, blocks)
    assert abs(held_out_r2(config, steps=STEPS, seed=0)) < 0.02
