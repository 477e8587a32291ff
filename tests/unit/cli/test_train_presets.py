"""Which network the options of `train` name, before anything is read."""

from __future__ import annotations

from dataclasses import fields

import pytest

from metal_edge.cli.train import TrainOptions, network_of
from metal_edge.errors import SettingsError
from metal_edge.models.features import PRESETS, MetalFeatures, MetalFeaturesConfig


def named(**given: object) -> MetalFeaturesConfig:
    """The network of `--model metal-features` with these options."""
    options = dict.fromkeys(field.name for field in fields(TrainOptions))
    options |= {"model": "metal-features", "preset": "products", "weighting": False}
    config = network_of(TrainOptions(**(options | given)))  # type: ignore[arg-type]
    assert isinstance(config, MetalFeaturesConfig)
    return config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_it_says(preset: str) -> None:
    assert named(preset=preset) == MetalFeaturesConfig(**PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [128, 192, 320])
def test_a_size_of_ones_own_wins_and_keeps_the_presets_pixels_per_token(
    preset: str, size: int
) -> None:
    usual, config = MetalFeaturesConfig(**PRESETS[preset]), named(preset=preset, image_size=size)
    assert config.image_size == size
    assert config.image_size / config.grid == usual.image_size / usual.grid


def test_a_size_that_no_stage_can_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="not a multiple of 32"):
        named(preset="fast", image_size=200)


def test_fast_computes_no_stage_that_it_does_not_use() -> None:
    network = MetalFeatures(named(preset="fast"))
    whole = MetalFeatures(named())
    assert len(network.backbone.stages) == max(network.backbone.taps) + 1
    assert len(network.backbone.stages) < len(whole.backbone.stages)
    assert network.config.image_size < whole.config.image_size
