"""Rules from a bundle and a recipe: what cannot be carried out is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from support.tiny_bundle import build_bundle

from metal_edge.bundle import Bundle
from metal_edge.daemon.deciding.decision import assess
from metal_edge.daemon.deciding.rules import view_rules
from metal_edge.domain import Inspection
from metal_edge.errors import SettingsError
from metal_edge.runtime.load import load_runner, read_golden_image
from metal_edge.settings import RegionSettings

Box = tuple[tuple[float, float], ...]


def box(left: float, top: float, right: float, bottom: float) -> Box:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Inspection]]:
    bundle = Bundle.open(build_bundle(tmp_path_factory.mktemp("rules") / "bundle"))
    with load_runner(bundle, 1) as runner:
        golden = [
            runner.run(read_golden_image(bundle, image.file)[None])[0]
            for image in bundle.golden.images
        ]
    return bundle, golden


def changed(bundle: Bundle, **manifest: Any) -> Bundle:
    changed_manifest = bundle.manifest.model_copy(update=manifest)
    return Bundle(bundle.path, changed_manifest, bundle.thresholds, bundle.golden, bundle.digest)


def refused(
    tiny: tuple[Bundle, list[Inspection]], regions: RegionSettings, reason: str
) -> SettingsError:
    with pytest.raises(SettingsError, match=reason) as caught:
        view_rules(tiny[0], regions, 1000, tiny[1])
    return caught.value


def test_without_region_settings_the_graphs_score_counts(
    tiny: tuple[Bundle, list[Inspection]],
) -> None:
    rules = view_rules(tiny[0], RegionSettings(), 250.5, tiny[1])
    assert (rules.threshold, rules.max_frame_age_ns) == (0.5, 250_500_000)
    assert (rules.source_size, rules.regions, rules.score_share) == ((32, 32), None, 0.0)


def test_a_spot_where_it_is_ignored_passes_and_beside_it_does_not(
    tiny: tuple[Bundle, list[Inspection]],
) -> None:
    """Through the real model: what it says of a white spot at (8, 8), 8 pixels wide."""
    bundle, golden = tiny
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[0, 8:16, 8:16] = 255
    with load_runner(bundle, 1) as runner:
        spot = runner.run(picture)[0]
    for ignored, score in ((box(8, 8, 16, 16), 0.0), (box(8, 8, 15, 16), 1.0)):
        rules = view_rules(bundle, RegionSettings(ignore=(ignored,)), 1000, golden)
        assert assess(spot, rules, (0, 0, 32, 32)).score == score
    for least, passes in ((65, True), (64, False)):
        rules = view_rules(bundle, RegionSettings(min_area_px=least), 1000, golden)
        made = assess(spot, rules, (0, 0, 32, 32))
        assert made.score is not None and (made.score < 0.5) == passes


def test_the_mask_covers_the_crop(tiny: tuple[Bundle, list[Inspection]]) -> None:
    bundle, golden = tiny
    size = {"source_width": 300, "source_height": 200, "width": 32, "height": 32}
    source = type(bundle.manifest.preprocess)(**size, crop=(100, 50, 64, 128))
    settings = RegionSettings(inspect=(box(100, 50, 131, 81),))
    rules = view_rules(changed(bundle, preprocess=source), settings, 1000, golden)
    assert rules.regions is not None and rules.regions.inspected is not None
    assert rules.source_size == (300, 200)
    assert rules.regions.area == (100, 50, 64, 128)
    expected = np.zeros((8, 8), bool)
    expected[:2, :4] = True
    np.testing.assert_array_equal(rules.regions.inspected, expected)


def test_without_a_crop_the_mask_covers_the_whole_picture(
    tiny: tuple[Bundle, list[Inspection]],
) -> None:
    bundle, golden = tiny
    size = {"source_width": 300, "source_height": 200, "width": 32, "height": 32}
    whole = changed(bundle, preprocess=type(bundle.manifest.preprocess)(**size))
    rules = view_rules(whole, RegionSettings(ignore=(box(0, 0, 150, 200),)), 1000, golden)
    assert rules.regions is not None and rules.regions.inspected is not None
    assert rules.regions.area == (0, 0, 300, 200)
    assert not rules.regions.inspected[:, :4].any() and rules.regions.inspected[:, 4:].all()


@pytest.mark.parametrize("share", [None, "0.1", True, -0.1, 1.5, float("nan")])
def test_a_bundle_that_does_not_say_how_its_score_arises_takes_no_region_rules(
    tiny: tuple[Bundle, list[Inspection]], share: object
) -> None:
    bundle = changed(tiny[0], model={} if share is None else {"score_share": share})
    assert view_rules(bundle, RegionSettings(), 1000, tiny[1]).score_share is None
    for settings in (RegionSettings(min_area_px=5), RegionSettings(ignore=(box(0, 0, 9, 9),))):
        refused((bundle, tiny[1]), settings, "nobody knows how the score")
    grown = view_rules(bundle, RegionSettings(hysteresis=0.5), 1000, tiny[1])
    assert grown.regions is not None and not grown.regions.filters


def test_a_share_that_the_model_does_not_follow_is_none(
    tiny: tuple[Bundle, list[Inspection]],
) -> None:
    bundle = changed(tiny[0], model={"score_share": 0.1})
    heat = np.full((8, 8), 0.1, np.float32)
    heat[0, 0] = 0.4
    golden = [*tiny[1], Inspection(heat, 0.4)]
    settings = RegionSettings(min_area_px=5)
    refused((bundle, golden), settings, "manifest says 0.1 as score_share")
    assert view_rules(tiny[0], settings, 1000, golden).score_share == 0.0
    for harmless in (RegionSettings(), RegionSettings(hysteresis=0.5)):
        assert view_rules(bundle, harmless, 1000, golden).score_share is None


def test_too_little_left_for_the_mean_is_refused(tiny: tuple[Bundle, list[Inspection]]) -> None:
    bundle = changed(tiny[0], model={"score_share": 0.25})  # 16 of 64
    for rows, allowed in ((16, True), (12, False)):
        settings = RegionSettings(inspect=(box(0, 0.1, 15.9, rows - 0.1),))
        if allowed:
            assert view_rules(bundle, settings, 1000, tiny[1]).regions is not None
        else:
            refused((bundle, tiny[1]), settings, "12 pixels of the map .* mean of 16")


def test_where_nothing_could_ever_be_rejected_is_refused(
    tiny: tuple[Bundle, list[Inspection]],
) -> None:
    refused(tiny, RegionSettings(min_area_px=1025), "nothing there could ever be rejected")
    assert view_rules(tiny[0], RegionSettings(min_area_px=1024), 1000, tiny[1])
    two = (box(0.1, 0.1, 15.9, 31.9), box(24.1, 8.1, 27.9, 11.9))
    error = refused(tiny, RegionSettings(inspect=two, min_area_px=17), "could ever be rejected")
    assert "x=24, y=8 has 16 pixels" in str(error)
    assert view_rules(tiny[0], RegionSettings(inspect=two, min_area_px=16), 1000, tiny[1])


def test_a_mask_that_leaves_nothing_is_refused(tiny: tuple[Bundle, list[Inspection]]) -> None:
    refused(tiny, RegionSettings(ignore=(box(0, 0, 32, 32),)), "nothing is left to inspect")
    refused(tiny, RegionSettings(inspect=(box(40, 0, 50, 9),)), "polygon 1 lies outside")


def test_growth_under_a_threshold_that_is_not_above_zero_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(build_bundle(tmp_path / "bundle", threshold=0.0))
    golden = [Inspection(np.zeros((8, 8), np.float32), 0.0)]
    refused((bundle, golden), RegionSettings(hysteresis=0.5), "hysteresis needs a threshold")
    assert view_rules(bundle, RegionSettings(min_area_px=5), 1000, golden).regions is not None


def test_pictures_of_unknown_size_take_no_region_rules(tmp_path: Path) -> None:
    bundle = Bundle.open(build_bundle(tmp_path / "bundle", source_size=None))
    golden = [Inspection(np.zeros((8, 8), np.float32), 0.0)]
    assert view_rules(bundle, RegionSettings(), 1000, golden).source_size is None
    refused((bundle, golden), RegionSettings(hysteresis=0.5), "how large its pictures are")


@pytest.mark.parametrize("corner", ["nan", "inf", "-inf"])
def test_settings_with_a_corner_that_is_no_number_are_refused(corner: str) -> None:
    points = json.loads(f'[[0, 0], [9, 0], [9, "{corner}"]]')
    with pytest.raises(ValidationError, match="finite"):
        RegionSettings(ignore=(points,))
