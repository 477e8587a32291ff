"""Copies from global to shared memory that land late: the state behind cp.async.

The data land when a wait of the issuing thread demands them and not before; until then the
destination is poisoned, and whoever touches it is reported. When they land they count as written by
the issuing thread, so that other warps still need a barrier after the wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx.lanes import Lanes
from tools.ptx.spaces import IN_FLIGHT, INITIALISED, POISON, SharedSpace
from tools.ptx.syntax import Instruction
from tools.ptx.types import Array


@dataclass
class _Copy:
    """What one cp.async instruction copied, by lane."""

    instruction: Instruction
    ids: Array
    places: Array  # in shared memory
    data: Array  # bytes [lanes, size]
    group: Array  # the number of the lane's commit group


class AsyncCopies:
    """Copies in flight in all lanes of a batch."""

    def __init__(self, shared: SharedSpace, lane_count: int) -> None:
        self.shared = shared
        self.committed = np.zeros(lane_count, np.int64)
        self.flying: list[_Copy] = []

    def reset(self) -> None:
        """New threads: nothing is in flight."""
        self.committed[:] = 0
        self.flying = []

    def issue(self, item: Instruction, lanes: Lanes, places: Array, data: Array) -> None:
        """Starts copies of `data` to `places`."""
        shared = self.shared
        size = data.shape[1]
        shared.note_write(lanes, places, size, item)
        shared.data[places[:, None] + np.arange(size)] = POISON
        if shared.state is not None:
            shared.state[shared.granules(places, size)] = IN_FLIGHT
        self.flying.append(_Copy(item, lanes.ids, places, data, self.committed[lanes.ids]))

    def commit(self, lanes: Lanes) -> None:
        """Closes the lanes' group."""
        self.committed[lanes.ids] += 1

    def wait(self, lanes: Lanes, pending: int) -> None:
        """Lands all but the `pending` most recent groups of the lanes."""
        waits = np.zeros(len(self.committed), bool)
        waits[lanes.ids] = True
        remaining = []
        for copy in self.flying:
            done = waits[copy.ids] & (copy.group < self.committed[copy.ids] - pending)
            if done.any():
                self._land(copy, done)
            if not done.all():
                rest = ~done
                remaining.append(
                    _Copy(
                        copy.instruction,
                        copy.ids[rest],
                        copy.places[rest],
                        copy.data[rest],
                        copy.group[rest],
                    )
                )
        self.flying = remaining

    def _land(self, copy: _Copy, done: Array) -> None:
        shared = self.shared
        places, data = copy.places[done], copy.data[done]
        if shared.state is not None:
            shared.state[shared.granules(places, data.shape[1])] = INITIALISED
        shared.note_write(Lanes(copy.ids[done]), places, data.shape[1], copy.instruction)
        shared.data[places[:, None] + np.arange(data.shape[1])] = data
