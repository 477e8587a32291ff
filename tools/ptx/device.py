"""Global memory: allocations far apart, so that no index error lands in another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx.types import Array

# Every allocation begins at a multiple of 4 GiB: bits 32 and up of an address name the allocation.
_SLOT_BITS = 32
_FIRST_SLOT = 0x7F00
_HEAP_ALIGNMENT = 256  # cudaMalloc's


@dataclass(frozen=True)
class Allocation:
    """One allocation: `size` bytes at device address `address`, at `start` of the heap."""

    name: str
    address: int
    size: int
    start: int


class Device:
    """A device's global memory. Addresses are plain integers, as in a CUDA program."""

    def __init__(self) -> None:
        self.heap = np.zeros(1 << 12, np.uint8)
        self.allocations: list[Allocation] = []
        self._top = 0
        self._bases = np.zeros(0, np.uint64)
        self._sizes = np.zeros(0, np.int64)
        self._starts = np.zeros(0, np.int64)

    def allocate(self, size: int, name: str = "", offset: int = 0) -> int:
        """Reserves `size` bytes of zeros; returns the address.

        offset: bytes past a 256-byte boundary, to try what a kernel does with a misaligned pointer.
        """
        start = self._top + offset
        self._top = -(-(start + size) // _HEAP_ALIGNMENT) * _HEAP_ALIGNMENT
        if self._top > len(self.heap):
            grown = np.zeros(2 * self._top, np.uint8)
            grown[: len(self.heap)] = self.heap
            self.heap = grown
        slot = _FIRST_SLOT + len(self.allocations)
        address = (slot << _SLOT_BITS) + offset
        name = name or f"allocation {len(self.allocations)}"
        self.allocations.append(Allocation(name, address, size, start))
        self._bases = np.array([a.address for a in self.allocations], np.uint64)
        self._sizes = np.array([a.size for a in self.allocations], np.int64)
        self._starts = np.array([a.start for a in self.allocations], np.int64)
        return address

    def upload(self, array: Array, name: str = "", offset: int = 0) -> int:
        """Copies an array to the device; returns its address."""
        address = self.allocate(array.nbytes, name, offset)
        start = self.allocations[-1].start
        self.heap[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        return address

    def download(self, address: int, like: Array) -> Array:
        """A copy of the device memory at `address`, of the shape and dtype of `like`."""
        start = int(self.translate(np.array([address], np.uint64), max(1, like.nbytes))[0][0])
        if start < 0:
            raise ValueError(f"{like.nbytes} bytes at {address:#x} lie in no allocation")
        raw = self.heap[start : start + like.nbytes].tobytes()
        return np.frombuffer(raw, like.dtype).reshape(like.shape).copy()

    @property
    def used(self) -> int:
        """Bytes of the heap in use, gaps for alignment included."""
        return self._top

    def translate(self, addresses: Array, size: int) -> tuple[Array, bool]:
        """Where `size` bytes at each address lie in the heap, -1 where they leave an allocation.

        The second result says whether all of them lie within.
        """
        if not self.allocations:
            return np.full(len(addresses), -1, np.int64), False
        low, high = int(addresses.min()), int(addresses.max())
        slot = (low >> _SLOT_BITS) - _FIRST_SLOT
        if 0 <= slot < len(self.allocations):  # the common case: all in one allocation
            only = self.allocations[slot]
            if only.address <= low and high + size <= only.address + only.size:
                base = np.uint64(only.address - only.start)
                return (addresses - base).astype(np.int64), True
        slots = (addresses >> np.uint64(_SLOT_BITS)).astype(np.int64) - _FIRST_SLOT
        known = (slots >= 0) & (slots < len(self.allocations))
        slots = np.where(known, slots, 0)
        inside = addresses - self._bases[slots]  # wraps to a large number below the base
        limit = self._sizes[slots] - size
        good = known & (limit >= 0) & (inside <= np.maximum(limit, 0).astype(np.uint64))
        places = np.where(good, self._starts[slots] + inside.astype(np.int64), -1)
        return places, bool(good.all())

    def describe(self, address: int) -> str:
        """In words, where an address lies: for messages."""
        slot = (address >> _SLOT_BITS) - _FIRST_SLOT
        if address < (1 << 16):
            return f"address {address:#x}, near null"
        near = self.allocations[max(0, slot) : max(0, slot + 2)]
        if near:  # the one before the address or, for small negative offsets, the one behind it
            found = min(near, key=lambda each: abs(address - each.address))
            return f"byte {address - found.address} of {found.name}, which has {found.size}"
        return f"address {address:#x}, in no allocation"
