"""What the results page measures is what `metal-edge train` trains."""

from __future__ import annotations

import pytest

from metal_edge.cli.train import FAST, FAST_PER_MODEL, PAPER, PAPER_PER_MODEL
from metal_edge.models.features import PRESETS, MetalFeaturesConfig
from tools.results.catalogue import Catalogue


def test_the_recipes_are_the_commands() -> None:
    paper = Catalogue().recipe("paper", None)
    assert {name: getattr(paper, name) for name in PAPER} == PAPER | PAPER_PER_MODEL["metal"]
    fast = Catalogue().recipe("fast", None)
    wanted = FAST | FAST_PER_MODEL["metal-features"]
    assert {name: getattr(fast, name) for name in wanted} == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_has_its_row(preset: str) -> None:
    row = "metal-features" if preset == "products" else f"metal-features-{preset.rstrip('s')}"
    assert Catalogue().variant(row).network == MetalFeaturesConfig(**PRESETS[preset])


@pytest.mark.parametrize(
    "row", ["metal-paper", "metal-gradients", "metal-zeroleak", "l2bt", "anovit"]
)
def test_a_row_trains_at_its_models_rate(row: str) -> None:
    variant = Catalogue().variant(row)
    kind = getattr(variant.network, "kind", "")
    assert variant.training.learning_rate == FAST_PER_MODEL[kind]["learning_rate"]
