"""From a bundle and a recipe's settings to the rules of one view, or to an error. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.daemon.deciding.decision import Rules, reproduces
from metal_edge.daemon.deciding.regions import (
    RegionRules,
    hottest_count,
    inspected_mask,
)
from metal_edge.domain import Inspection
from metal_edge.errors import SettingsError
from metal_edge.settings import RegionSettings

_REBUILD = "build the bundle again, or leave `regions` empty"


def view_rules(
    bundle: Bundle,
    regions: RegionSettings,
    max_frame_age_ms: float,
    golden: Sequence[Inspection],
) -> Rules:
    """What evidence of one view is held against.

    Args:
        bundle: gives threshold, picture size, and how the score comes from the map.
        regions: of the recipe.
        max_frame_age_ms: an older frame is stale.
        golden: what the bundle's model says of its golden images, at least one; the size of its
            map, and proof that the score can be formed anew from a part of it.

    Raises:
        SettingsError: `regions` cannot be carried out with this bundle, or leaves a place where
            nothing could ever be rejected.
    """
    source = bundle.manifest.preprocess
    size = None
    if source.source_width is not None and source.source_height is not None:
        size = (source.source_width, source.source_height)
    rules = Rules(
        bundle.thresholds.score,
        round(max_frame_age_ms * 1e6),
        size,
        score_share=_proven_share(bundle, golden),
    )
    if regions == RegionSettings():
        return rules
    area = source.crop or ((0, 0, *size) if size else None)
    if area is None:
        raise SettingsError(
            f"regions: bundle {bundle.path} does not say how large its pictures are", _REBUILD
        )
    rows, columns = golden[0].anomaly_map.shape
    mask = inspected_mask((rows, columns), area, regions.inspect, regions.ignore)
    wanted = RegionRules(area, (rows, columns), mask, regions.min_area_px, regions.hysteresis)
    _check_sense(wanted, bundle.thresholds.score)
    if wanted.filters:
        _check_score(wanted, rules.score_share, bundle)
    return replace(rules, regions=wanted)


def _proven_share(bundle: Bundle, golden: Sequence[Inspection]) -> float | None:
    """Of which share of the map the graph's score is the mean; None when nobody knows."""
    share = bundle.manifest.model.get("score_share")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        return None
    threshold = bundle.thresholds.score
    follows = all(reproduces(inspection, share, threshold) for inspection in golden)
    return float(share) if follows else None


def _check_sense(wanted: RegionRules, threshold: float) -> None:
    if threshold <= 0 and wanted.hysteresis is not None:
        raise SettingsError(
            f"regions: hysteresis needs a threshold above 0, it is {threshold:.6g}",
            "leave it out for this bundle",
        )
    mask = wanted.inspected if wanted.inspected is not None else np.ones(wanted.shape, np.bool_)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    islands = stats[1:]
    smallest = islands[islands[:, cv2.CC_STAT_AREA].argmin()]
    size = float(smallest[cv2.CC_STAT_AREA]) * wanted.pixel_area
    if size < wanted.min_area_px:
        x = wanted.area[0] + round(smallest[0] * wanted.area[2] / wanted.shape[1])
        y = wanted.area[1] + round(smallest[1] * wanted.area[3] / wanted.shape[0])
        raise SettingsError(
            f"regions: what is inspected near x={x}, y={y} has {size:.0f} pixels, less than"
            f" min_area_px ({wanted.min_area_px}): nothing there could ever be rejected",
            "lower min_area_px, enlarge that polygon, or let ignore polygons overlap",
        )


def _check_score(wanted: RegionRules, share: float | None, bundle: Bundle) -> None:
    if share is None:
        said = bundle.manifest.model.get("score_share", "nothing")
        raise SettingsError(
            f"regions: nobody knows how the score of bundle {bundle.path} comes from its map: its"
            f" manifest says {said!r} as score_share, and its golden images must follow that",
            _REBUILD,
        )
    needed = hottest_count(share, wanted.shape[0] * wanted.shape[1])
    if wanted.pixels < needed:
        raise SettingsError(
            f"regions: {wanted.pixels} pixels of the map are inspected, but the score is the mean"
            f" of {needed}: the threshold would not hold for it",
            "inspect more, or use a model with a smaller score_share",
        )
