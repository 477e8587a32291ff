"""Counts of a launch: instructions, memory traffic, coalescing, bank conflicts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.ptx.lanes import WARP
from tools.ptx.syntax import Instruction
from tools.ptx.types import Array

SECTOR = 32  # bytes: the unit that L2 and DRAM move
BANKS = 32  # of 4 bytes each


@dataclass
class Access:
    """Traffic of one memory instruction, summed over the warps that executed it.

    transactions: 32-byte sectors for global memory, passes over the banks for shared memory; ideal:
    the fewest that could move the same distinct bytes.
    """

    instruction: Instruction
    space: str
    store: bool
    bytes: int = 0
    transactions: int = 0
    ideal: int = 0

    @property
    def efficiency(self) -> float:
        """ideal / transactions, 1 is best."""
        return self.ideal / self.transactions if self.transactions else 1.0


@dataclass
class Statistics:
    """Counts of one launch. `opcodes` counts instructions issued per warp."""

    opcodes: dict[str, int] = field(default_factory=dict)
    accesses: dict[int, Access] = field(default_factory=dict)  # by PTX line; needs profile=True
    unique_bytes: dict[str, int] = field(default_factory=dict)  # read, written; profile=True
    barriers: int = 0  # bar.sync, counted once per block
    blocks: int = 0

    @property
    def instructions(self) -> int:
        """Instructions issued, summed over warps."""
        return sum(self.opcodes.values())

    def count(self, *prefixes: str) -> int:
        """Instructions issued whose opcode begins with one of `prefixes`: count("mma.sync")."""
        return sum(n for opcode, n in self.opcodes.items() if opcode.startswith(prefixes))

    def _sum(self, space: str, store: bool | None, field_name: str) -> int:
        return sum(
            int(getattr(access, field_name))
            for access in self.accesses.values()
            if access.space == space and (store is None or access.store == store)
        )

    @property
    def global_read(self) -> int:
        """Bytes that lanes read from global memory."""
        return self._sum("global", False, "bytes")

    @property
    def global_written(self) -> int:
        """Bytes that lanes wrote to global memory."""
        return self._sum("global", True, "bytes")

    @property
    def coalescing(self) -> float:
        """Fewest sectors / sectors touched, over all global accesses; 1 is best."""
        sectors = self._sum("global", None, "transactions")
        return self._sum("global", None, "ideal") / sectors if sectors else 1.0

    @property
    def bank_conflicts(self) -> int:
        """Passes over the shared-memory banks beyond the fewest possible."""
        return self._sum("shared", None, "transactions") - self._sum("shared", None, "ideal")


def _distinct(rows: Array) -> Array:
    """Marks the first occurrence of each value in the sorted rows; negative values are absent."""
    first = np.ones(rows.shape, bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return first & (rows >= 0)


def _by_warp(ids: Array, values: Array) -> Array:
    """Values of lanes as int64 [warps, 32, ...], -1 for lanes that take no part."""
    warps, row = np.unique(ids // WARP, return_inverse=True)
    table = np.full((len(warps), WARP, *values.shape[1:]), -1, np.int64)
    table[row, ids % WARP] = values
    return table


def sectors(ids: Array, addresses: Array, size: int) -> tuple[int, int]:
    """Sectors touched and the fewest possible, for aligned accesses of up to 16 bytes per lane."""
    table = _by_warp(ids, addresses)
    touched = np.sort(np.where(table >= 0, table // SECTOR, -1), axis=1)
    distinct = _distinct(np.sort(table, axis=1)).sum(axis=1) * size
    return int(_distinct(touched).sum()), int((-(-distinct // SECTOR)).sum())


def bank_passes(ids: Array, offsets: Array, size: int) -> tuple[int, int]:
    """Passes over the banks and the fewest possible, for `size` bytes per lane at `offsets`.

    A warp's access of 8 bytes per lane goes in two halves, of 16 in four quarters; in each, lanes
    that want the same word of a bank share it, different words of a bank follow one another.
    """
    words = max(1, size // 4)
    units = offsets[:, None] // 4 + np.arange(words)
    table = _by_warp(ids, units).reshape(-1, WARP // words * words)  # one row per half or quarter
    table = np.sort(table, axis=1)
    first = _distinct(table)
    row = np.nonzero(first)[0]
    load = np.bincount(row * BANKS + table[first] % BANKS, minlength=len(table) * BANKS)
    passes = load.reshape(-1, BANKS).max(axis=1)
    return int(passes.sum()), int((passes > 0).sum())
