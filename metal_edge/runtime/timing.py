"""Times of calls that take turns, so that ratios between them mean something."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

WARM_UP = 10


def take_turns(
    calls: Sequence[Callable[[], object]],
    turns: int,
    seconds: Callable[[], float],
    on_turn: Callable[[int], None] = lambda _done: None,
) -> NDArray[np.float64]:
    """Milliseconds of every call, float64 [turns, calls].

    Each turn makes every call once, after WARM_UP turns that do not count; every other turn goes
    backwards, so that no call always follows the same one.
    """
    times = np.empty((turns, len(calls)))
    for turn in range(-WARM_UP, turns):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for column in order:
            start = seconds()
            calls[column]()
            elapsed = seconds() - start
            if turn >= 0:
                times[turn, column] = 1000 * elapsed
        if turn >= 0:
            on_turn(turn + 1)
    return times
