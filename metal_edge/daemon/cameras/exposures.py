"""The count of exposures of a wired trigger, from the camera's own frame counter. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# A longer gap is no gap: the camera restarted, or counts something else.
MAX_GAP = 64


@dataclass(frozen=True, slots=True)
class Step:
    """What the counter of the next frame says.

    Attributes:
        lost: exposures before this frame that gave none.
        doubtful: the counter began anew, so nobody knows which part this frame shows.
    """

    lost: int = 0
    doubtful: bool = False


class ExposureCounter:
    """Finds the exposures that gave no frame.

    Args:
        max_gap: a longer one, or a step that is not forwards, means that the counter began anew.
    """

    def __init__(self, max_gap: int = MAX_GAP) -> None:
        self._max_gap = max_gap
        self._last: int | None = None
        self._uncounted = 0
        self._interrupted = False

    def interrupted(self) -> None:
        """The connection broke: how many exposures it cost, nobody can say."""
        self._interrupted = True

    def step(self, seq: int | None) -> Step:
        """The next frame, whole or torn; the first one has nothing to be compared with.

        Args:
            seq: its number. None: torn, and the camera does not say which; whether it leaves a
                gap is then unknown, and a gap of that size will not be counted as lost.
        """
        if seq is None:
            self._uncounted += 1
            return Step()
        last, self._last = self._last, seq
        uncounted, self._uncounted = self._uncounted, 0
        interrupted, self._interrupted = self._interrupted, False
        if last is None:
            return Step()
        if interrupted:
            return Step(doubtful=True)
        gap = seq - last - 1
        if not 0 <= gap <= self._max_gap + uncounted:
            return Step(doubtful=True)
        return Step(lost=max(0, gap - uncounted))
