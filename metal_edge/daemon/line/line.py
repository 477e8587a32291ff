"""One inspection line: the thread that decides, and what other threads may ask of it."""

from __future__ import annotations

from collections.abc import Mapping

from metal_edge.daemon.deciding.decision import Reason
from metal_edge.daemon.deciding.transitions import Event, State
from metal_edge.daemon.line.free_run import run_free
from metal_edge.daemon.line.inspector import Inspector
from metal_edge.daemon.line.model import Done, Model
from metal_edge.daemon.line.modes import run_hardware, run_triggered
from metal_edge.daemon.line.parts import Parts, StopFlag
from metal_edge.daemon.line.requests import Requests, Taken
from metal_edge.daemon.line.state import LineState
from metal_edge.settings import CameraMode, LineSettings

__all__ = ["Line", "Parts", "StopFlag"]

_MODES = {
    CameraMode.TRIGGERED: run_triggered,
    CameraMode.LATEST: run_free,
    CameraMode.HARDWARE: run_hardware,
}


class Line:
    """Inspects from `run` until its stop flag is set or its pictures end.

    All methods but `run` may be called from any thread.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._state = LineState()
        self._requests = Requests(parts.bell)
        self._inspector = Inspector(parts, self._state, self._requests)

    def run(self) -> None:
        """Inspects until told to stop. What goes wrong with one part ends as its verdict."""
        inspector = self._inspector
        inspector.start()
        try:
            self._state.tell(Event.READY)
            _MODES[self._parts.settings.camera.mode](inspector)
        finally:
            # Also when a mistake of ours ends the line: who waits hears of it.
            self._state.tell(Event.STOP)
            for trigger in self._parts.queue.close():
                inspector.answer(trigger, Reason.SHUTTING_DOWN)
            self._requests.end()
            inspector.close()

    @property
    def state(self) -> State:
        """What the line does at the moment."""
        return self._state.now

    @property
    def serving(self) -> Model:
        """The first view's model, as it serves now."""
        return self._inspector.models[self._parts.views[0].camera_id]

    def arm(self) -> State:
        """Inspects again after `disarm`; what failed again and again gets another chance.

        Otherwise only a part could show that a back end works again, and a PLC may send none to a
        line that is not healthy.
        """
        self._requests.mend()
        return self._tell(Event.ARM)

    def disarm(self, because: str = "") -> State:
        """Answers every part `unknown`, from this call on, until `arm`."""
        return self._tell(Event.DISARM, because)

    def replace_models(self, models: Mapping[str, Model], done: Done) -> None:
        """Serves with `models` after the part in hand.

        Args:
            models: one per view, by camera_id, ready to use.
            done: called in the deciding thread with the models that nobody uses any more: those
                that served before, or `models` themselves when the line stops first.

        Raises:
            ValueError: not exactly one model per view.
        """
        views = {view.camera_id for view in self._parts.views}
        if set(models) != views:
            raise ValueError(f"models for {sorted(models)}, but the views are {sorted(views)}")
        self._requests.replace(dict(models), done)

    def take_settings(self, settings: LineSettings) -> None:
        """From the next part on; in the deciding thread. Only deadline and gate are looked at."""
        self._inspector.settings = settings

    def snapshot(self, taken: Taken) -> bool:
        """Keeps the pictures of the next part as evidence, whatever the settings say.

        Args:
            taken: called in the deciding thread with that part's decision; with None when the
                line stops before there is one.

        Returns:
            False when too many wait already.
        """
        return self._requests.snapshot(taken)

    def _tell(self, event: Event, because: str = "") -> State:
        state = self._state.tell(event, because)
        self._inspector.heart.hurry()
        self._parts.bell.ring()
        return state
