"""A new model's first inferences in service: where golden images cannot look."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.daemon.deciding.decision import is_finite
from metal_edge.daemon.line.model import Models
from metal_edge.domain import Inspection
from metal_edge.runtime.base import Runner

log = logging.getLogger(__name__)

# So many good inferences in a row, of all views together, end the trial.
TRIAL_INFERENCES = 20


class Trial:
    """Ends once: well after enough good inferences, badly at the first other one.

    Args:
        passed, broke: called in the thread that inferred; `broke` with what went wrong.
    """

    def __init__(self, passed: Callable[[], None], broke: Callable[[str], None]) -> None:
        self._passed = passed
        self._broke = broke
        self._lock = threading.Lock()
        self._left = TRIAL_INFERENCES

    def watch(self, models: Models) -> Models:
        """The same models, their runners watched."""
        return {
            camera_id: replace(model, runner=_WatchedRunner(model.runner, self))
            for camera_id, model in models.items()
        }

    def good(self, count: int) -> None:
        """So many inferences gave finite numbers."""
        with self._lock:
            over = 0 < self._left <= count
            self._left = max(0, self._left - count)
        if over:
            self._passed()

    def bad(self, what: str) -> None:
        """An inference failed, or gave numbers that mean nothing."""
        with self._lock:
            over = self._left > 0
            self._left = 0
        if over:
            self._broke(what)


class _WatchedRunner:
    """A Runner that tells the trial how it went."""

    def __init__(self, runner: Runner, trial: Trial) -> None:
        self._runner = runner
        self._trial = trial

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self._runner.input_shape

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        try:
            inspections = self._runner.run(images)
        except Exception as error:
            self._trial.bad(f"inference failed ({error})")
            raise
        if all(is_finite(inspection) for inspection in inspections):
            self._trial.good(len(inspections))
        else:
            self._trial.bad("inference gave numbers that are not finite")
        return inspections

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)
