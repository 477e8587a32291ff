"""Sets of lanes that execute an instruction together."""

from __future__ import annotations

import numpy as np

from tools.ptx.types import Array

WARP = 32


class Lanes:
    """A set of lanes, by their numbers in the batch, ascending.

    index: what selects them in a register: a slice where they are contiguous, which NumPy serves
    without a copy. full: every warp that takes part does so with all 32 lanes. A batch numbers its
    lanes block by block, each block padded to whole warps, so lane // 32 is the warp.
    """

    __slots__ = ("_warps", "count", "full", "ids", "index", "warp_count")

    def __init__(self, ids: Array) -> None:
        self.ids = ids
        self.count = len(ids)
        first, last = int(ids[0]), int(ids[-1])
        self.index: slice | Array
        self._warps: Array | None = None
        if last - first + 1 == self.count:
            self.index = slice(first, last + 1)
            self.full = first % WARP == 0 and last % WARP == WARP - 1
            self.warp_count = last // WARP - first // WARP + 1
        else:
            self.index = ids
            rows = ids.reshape(-1, WARP) if self.count % WARP == 0 else None
            self.full = rows is not None and bool(
                (rows[:, -1] - rows[:, 0] == WARP - 1).all() and (rows[:, 0] % WARP == 0).all()
            )
            self.warp_count = self.count // WARP if self.full else len(self.warps)

    @property
    def warps(self) -> Array:
        """The warps that take part, by their numbers in the batch, ascending."""
        if self._warps is None:
            warps = self.ids // WARP
            keep = np.ones(len(warps), bool)
            keep[1:] = warps[1:] != warps[:-1]
            self._warps = warps[keep]
        return self._warps

    @property
    def rows(self) -> slice | Array:
        """What selects the warps in a register seen as [warps, 32]."""
        if isinstance(self.index, slice):
            return slice(self.index.start // WARP, (self.index.stop - 1) // WARP + 1)
        return self.warps

    def where(self, keep: Array) -> Lanes | None:
        """Those lanes for which `keep`, a mask over this set, holds; None if there are none."""
        ids = self.ids[keep]
        return Lanes(ids) if len(ids) else None

    def mask(self) -> Array:
        """Who takes part, bool [participating warps, 32]."""
        warps = self.warps
        mask = np.zeros((len(warps), WARP), bool)
        mask[np.searchsorted(warps, self.ids // WARP), self.ids % WARP] = True
        return mask
