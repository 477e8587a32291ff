"""From a recipe's bundles to models that may judge parts: hashes, engine, golden images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.daemon.deciding.rules import view_rules
from metal_edge.daemon.line.model import Model, Models
from metal_edge.daemon.mqtt.messages import Identity
from metal_edge.errors import SettingsError
from metal_edge.runtime.load import check_golden
from metal_edge.runtime.shared import Engines
from metal_edge.settings import LineSettings, RegionSettings

log = logging.getLogger(__name__)

# The settings' own bundle, regions and views.
DEFAULT = "default"
# The first runs of a session allocate; the first part must not pay for it.
WARM_UP_RUNS = 3


@dataclass(frozen=True, slots=True)
class Source:
    """What one view is to be judged by."""

    bundle: Path
    regions: RegionSettings


@dataclass(frozen=True, slots=True, eq=False)
class Proven:
    """Models, one per view, that gave their golden scores on this machine.

    Attributes:
        golden_difference: by camera_id, how far the worst golden score was off.
    """

    models: Models
    golden_difference: dict[str, float]


def sources(settings: LineSettings, recipe: str) -> dict[str, Source]:
    """By camera_id, the first camera first.

    Raises:
        SettingsError: no such recipe.
    """
    first = settings.camera.camera_id
    own = {view.camera_id: Source(view.bundle, view.regions) for view in settings.views}
    if recipe == DEFAULT:
        return {first: Source(settings.bundle, settings.regions), **own}
    chosen = settings.recipes.get(recipe)
    if chosen is None:
        known = ", ".join([DEFAULT, *sorted(settings.recipes)])
        raise SettingsError(f"recipe {recipe!r} is not in the settings", f"known are {known}")
    others = {name: Source(view.bundle, view.regions) for name, view in chosen.views.items()}
    return {first: Source(chosen.bundle, chosen.regions), **own, **others}


def prove(
    settings: LineSettings,
    recipe: str,
    session_id: str,
    engines: Engines,
    stop: Callable[[], bool] = lambda: False,
) -> Proven | None:
    """Opens, loads, checks and warms up; nothing is left open when that fails.

    Returns:
        None when `stop` says so between two views.

    Raises:
        MetalEdgeError: what is wrong with a bundle, or with it on this machine.
    """
    models: dict[str, Model] = {}
    differences: dict[str, float] = {}
    done = False
    try:
        for camera_id, source in sources(settings, recipe).items():
            if stop():
                return None
            model, difference = _prove_one(
                settings, recipe, (camera_id, source), session_id, engines
            )
            models[camera_id], differences[camera_id] = model, difference
        done = True
    finally:
        if not done:
            release(models)
    return Proven(models, differences)


def release(models: Models) -> None:
    """Gives the engines back."""
    for model in models.values():
        with model.runner:
            pass


def _prove_one(
    settings: LineSettings,
    recipe: str,
    view: tuple[str, Source],
    session_id: str,
    engines: Engines,
) -> tuple[Model, float]:
    camera_id, source = view
    bundle = Bundle.open(source.bundle)
    runner = engines.open(bundle, settings.runtime.threads)
    try:
        golden = check_golden(bundle, runner)
        max_age_ms = settings.decision.max_frame_age_ms
        rules = view_rules(bundle, source.regions, max_age_ms, golden.inspections)
        blank = np.zeros((1, *runner.input_shape), dtype=np.uint8)
        for _ in range(WARM_UP_RUNS):
            runner.run(blank)
    except BaseException:
        runner.close()
        raise
    log.info("bundle %s reproduces its %d golden images", bundle.path, golden.images)
    identity = identify(settings, bundle, camera_id, session_id)
    return Model(recipe, identity, bundle, runner, rules), golden.worst_difference


def identify(settings: LineSettings, bundle: Bundle, camera_id: str, session_id: str) -> Identity:
    """Who answers while this bundle serves."""
    manifest = bundle.manifest
    return Identity(
        topic_root=settings.station.topic_root,
        session_id=session_id,
        camera_id=camera_id,
        model_id=manifest.name,
        model_version=manifest.version,
        model_sha256=bundle.digest,
        backend=f"{manifest.backend}-{manifest.precision}",
    )
