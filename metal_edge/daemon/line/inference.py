"""One question to the model, and a thread that asks it while the deciding thread does the rest.

Back ends let go of the interpreter while they infer, so all that is Python costs no time that
happens meanwhile.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.deciding.decision import Evidence
from metal_edge.daemon.scheduling import schedule_deciding_thread
from metal_edge.domain import Inspection
from metal_edge.runtime.base import Runner

log = logging.getLogger(__name__)

# After so long a thread that is still inside the back end is left behind.
CLOSE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A frame on its way through the model.

    Attributes:
        evidence: so far.
        began_ns: when that was, before checks and resizing.
        images: what the model is to be asked about; None where the evidence settles it.
        runner: the model.
    """

    evidence: Evidence
    began_ns: int
    images: NDArray[np.uint8] | None
    runner: Runner


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the model said, or the error instead of it; and when."""

    inspection: Inspection | None
    error: Exception | None
    done_ns: int


def infer(look: Look, clock: Clock) -> Found:
    """Whatever the back end does becomes an answer."""
    try:
        if look.images is None:
            raise ValueError("there is nothing to ask the model about")
        inspection = look.runner.run(look.images)[0]
    except Exception as error:  # noqa: BLE001  (logged by who assesses it, under the line's name)
        return Found(None, error, clock.mono_ns())
    return Found(inspection, None, clock.mono_ns())


class InferenceThread:
    """Takes one look at a time. Whoever begins one must fetch what was found before the next.

    Args:
        clock: of the line.
        priority: as the deciding thread's, which waits for this one.
    """

    def __init__(self, clock: Clock, priority: int) -> None:
        self._clock = clock
        self._priority = priority
        self._looks: SimpleQueue[Look | None] = SimpleQueue()
        self._taken: SimpleQueue[None] = SimpleQueue()
        self._found: SimpleQueue[Found] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)

    def start(self) -> None:
        """Begins to take looks."""
        self._thread.start()

    def begin(self, look: Look) -> None:
        """Returns when the thread has it: who goes on at once would keep the interpreter."""
        self._looks.put(look)
        self._taken.get()

    def found_within(self, timeout_s: float) -> Found | None:
        """What came of the look; None when that takes longer."""
        try:
            return self._found.get(timeout=timeout_s)
        except Empty:
            return None

    def found(self) -> Found:
        """What came of the look, however long it takes."""
        return self._found.get()

    def close(self) -> None:
        """Ends the thread; one that is stuck in the back end is left behind and said so."""
        self._looks.put(None)
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("the model does not return from an inference; left behind")

    def _serve(self) -> None:
        schedule_deciding_thread(self._priority)
        while (look := self._looks.get()) is not None:
            self._taken.put(None)
            self._found.put(infer(look, self._clock))
