"""What a line decides with: a model per view, swapped as one between two parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from metal_edge.bundle import Bundle
from metal_edge.daemon.cameras import Camera
from metal_edge.daemon.cameras.frame_checks import FrameChecks
from metal_edge.daemon.deciding.decision import Rules
from metal_edge.daemon.mqtt.messages import Identity
from metal_edge.runtime.base import Runner


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What one view is judged by.

    Attributes:
        recipe: its name; the same for all views of a line.
        identity: who answers while this model serves.
        bundle, runner: the model, loaded and proven by its golden images.
        rules: threshold, regions and freshness.
    """

    recipe: str
    identity: Identity
    bundle: Bundle
    runner: Runner
    rules: Rules


# By camera_id, one per view.
Models = Mapping[str, Model]
# Called in the deciding thread with what served before, once nothing uses it any more.
Done = Callable[[Models], None]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One camera with what judges its pictures."""

    camera: Camera
    camera_id: str
    bundle: Bundle
    runner: Runner
    rules: Rules
    checks: FrameChecks

    def serving(self, model: Model) -> View:
        """The same camera under another model."""
        return replace(self, bundle=model.bundle, runner=model.runner, rules=model.rules)
