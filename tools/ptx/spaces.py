"""Memory spaces as a running kernel sees them: every access is checked, then done for all lanes."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from tools.ptx import statistics
from tools.ptx.device import Device
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.ordering import Clocks, Shadow
from tools.ptx.report import Kind
from tools.ptx.syntax import Instruction
from tools.ptx.types import Array

POISON = 0xFF  # what reads see that found nothing valid: NaN in every floating-point type

# Where spaces lie in the generic address space. Shared memory does not begin at 0, so that a null
# pointer is not valid in it.
SHARED_BASE = 1024
SHARED_WINDOW = 0x6E00_0000_0000
LOCAL_WINDOW = 0x6F00_0000_0000
WINDOW_SIZE = 1 << 32

UNINITIALISED, INITIALISED, IN_FLIGHT = 0, 1, 2


class Observer(Protocol):
    """Who hears of violations and traffic: the machine."""

    profile: bool
    statistics: statistics.Statistics

    def violate(self, kind: Kind, message: str, instruction: Instruction, lane: int) -> None:
        """Records a violation by a lane of the batch."""


class _Use(NamedTuple):
    """A kind of access, and what it is blamed for when it races."""

    reads: bool
    writes: bool
    race: str


_READ = _Use(True, False, "reads what another lane wrote")
_WRITE = _Use(False, True, "writes what another lane reads or writes")
_ATOMIC = _Use(True, True, "changes what another lane writes")


class Space:
    """What the spaces share. `data` holds bytes; `granule` is the size of the smallest access."""

    name = ""

    def __init__(self, observer: Observer, clocks: Clocks, data: Array, granule: int) -> None:
        self.observer = observer
        self.clocks = clocks
        self.data = data
        self.granule = granule
        self.shadow: Shadow | None = None
        self.state: Array | None = None

    def locate(self, lanes: Lanes, addresses: Array, size: int) -> tuple[Array, bool]:
        """Index into `data` of each lane's address, -1 outside; whether all lie inside."""
        raise NotImplementedError

    def describe(self, address: int) -> str:
        """Where an address outside lies, in words."""
        raise NotImplementedError

    def check(
        self, lanes: Lanes, addresses: Array, size: int, instruction: Instruction
    ) -> tuple[Array, Array | None]:
        """Bounds and alignment. Returns places, and which lanes are good where some are not."""
        places, inside = self.locate(lanes, addresses, size)
        good: Array | None = None
        what = f"{size} bytes of {self.name} memory at"
        if not inside:
            good = places >= 0
            first = self.describe(int(addresses[np.argmin(good)]))
            self._blame(Kind.BOUNDS, f"{what} {first}", instruction, lanes.ids, ~good)
        aligned = (addresses & addresses.dtype.type(size - 1)) == 0
        if not aligned.all():
            first = f"address {int(addresses[np.argmin(aligned)]):#x}"
            self._blame(Kind.ALIGNMENT, f"{what} {first}", instruction, lanes.ids, ~aligned)
            good = aligned if good is None else good & aligned
        return places, good

    def _blame(
        self, kind: Kind, message: str, instruction: Instruction, ids: Array, guilty: Array
    ) -> None:
        """Reports a violation by the first guilty lane."""
        self.observer.violate(kind, message, instruction, int(ids[np.argmax(guilty)]))

    def granules(self, places: Array, size: int) -> Array:
        """The granules of `size` bytes at each place, [lanes, granules]."""
        first = places[:, None] // self.granule
        return first if size == self.granule else first + np.arange(size // self.granule)

    def note_read(
        self, lanes: Lanes, places: Array, size: int, instruction: Instruction, strong: bool = False
    ) -> None:
        """Checks a read for races and for bytes that nobody wrote."""
        self._note(_READ, lanes, places, size, instruction, strong=strong)

    def note_write(
        self, lanes: Lanes, places: Array, size: int, instruction: Instruction, strong: bool = False
    ) -> None:
        """Checks a write for races and marks the bytes as initialised."""
        self._note(_WRITE, lanes, places, size, instruction, strong=strong)

    def note_atomic(
        self, lanes: Lanes, places: Array, size: int, instruction: Instruction, order: Array
    ) -> None:
        """Checks a read-modify-write; `order` is the order in which the lanes take their turns.

        To the shadow it is a write only: whoever does an atomic after it has seen it.
        """
        self._note(_ATOMIC, lanes, places, size, instruction, strong=True, order=order)

    def _note(
        self,
        use: _Use,
        lanes: Lanes,
        places: Array,
        size: int,
        instruction: Instruction,
        *,
        strong: bool,
        order: Array | None = None,
    ) -> None:
        if self.shadow is None and self.state is None:
            return
        index = self.granules(places, size)
        if self.state is not None:
            self._check_state(self.state[index], lanes, instruction, reading=use.reads)
            if use.writes:
                self.state[index] = INITIALISED
        if self.shadow is not None:
            ids = lanes.ids
            if order is not None:
                ids, index = ids[order], index[order]
            note = self.shadow.on_write if use.writes else self.shadow.on_read
            racing = note(self.clocks, ids, index, strong)
            if racing is not None:
                self._report_race(racing, ids, index, instruction, use.race)

    def _report_race(
        self, racing: Array, ids: Array, index: Array, instruction: Instruction, what: str
    ) -> None:
        place = self.place_name(int(index[np.argmax(racing), 0]) * self.granule)
        message = f"{what} without a barrier between ({self.name} memory, {place})"
        self._blame(Kind.RACE, message, instruction, ids, racing)

    def place_name(self, place: int) -> str:
        """A place in `data`, in words."""
        return f"byte {place}"

    def _check_state(
        self, state: Array, lanes: Lanes, instruction: Instruction, reading: bool
    ) -> None:
        verb = "reads" if reading else "writes"
        flight = (state == IN_FLIGHT).any(axis=1)
        if flight.any():
            message = f"{verb} {self.name} memory that a cp.async still fills"
            self._blame(Kind.ASYNC, message, instruction, lanes.ids, flight)
        if reading:
            fresh = (state == UNINITIALISED).any(axis=1)
            if fresh.any():
                message = f"reads {self.name} memory that nobody wrote"
                self._blame(Kind.UNINITIALISED, message, instruction, lanes.ids, fresh)

    def read(
        self,
        lanes: Lanes,
        addresses: Array,
        dtype: np.dtype[Any],
        count: int,
        instruction: Instruction,
        *,
        strong: bool = False,
    ) -> Array:
        """`count` elements at each address, [lanes, count]; poison where the access is bad."""
        size = dtype.itemsize * count
        places, good = self.check(lanes, addresses, size, instruction)
        if good is None:
            self.note_read(lanes, places, size, instruction, strong)
            self.count(lanes.ids, places, size, instruction, store=False)
            first = places[:, None] // dtype.itemsize
            index = first + np.arange(count) if count > 1 else first
            found: Array = self._typed(dtype)[index]
            return found
        values = np.full((lanes.count, size), POISON, np.uint8).view(dtype)
        fewer = lanes.where(good)
        if fewer is not None:
            where = addresses[good]
            values[good] = self.read(fewer, where, dtype, count, instruction, strong=strong)
        return values

    def write(
        self,
        lanes: Lanes,
        addresses: Array,
        values: Array,
        instruction: Instruction,
        *,
        strong: bool = False,
    ) -> None:
        """Writes `values` [lanes, count]; lanes whose access is bad write nothing."""
        count = values.shape[1]
        size = values.dtype.itemsize * count
        places, good = self.check(lanes, addresses, size, instruction)
        if good is not None:
            fewer = lanes.where(good)
            if fewer is not None:
                self.write(fewer, addresses[good], values[good], instruction, strong=strong)
            return
        self.note_write(lanes, places, size, instruction, strong)
        self.count(lanes.ids, places, size, instruction, store=True)
        typed = self._typed(values.dtype)
        index = places[:, None] // values.dtype.itemsize + np.arange(count)
        typed[index] = values
        if self.shadow is not None and not strong:
            self._check_duplicates(typed[index], values, lanes, instruction)

    def _check_duplicates(
        self, kept: Array, values: Array, lanes: Lanes, instruction: Instruction
    ) -> None:
        # Lanes of one instruction that write one place: which value stays is not defined. Equal
        # values do no harm.
        unequal = np.ascontiguousarray(kept).view(np.uint8) != values.view(np.uint8)
        if unequal.any():
            message = f"lanes write different values to one place of {self.name} memory"
            self._blame(Kind.RACE, message, instruction, lanes.ids, unequal.any(axis=1))

    def _typed(self, dtype: np.dtype[Any]) -> Array:
        return self.data.view(dtype)

    def count(
        self, ids: Array, places: Array, size: int, instruction: Instruction, *, store: bool
    ) -> None:
        """Adds an access to the statistics, where they are wanted."""
        if not self.observer.profile:
            return
        taken = self.transactions(ids, places, size)
        if taken is None:
            return
        access = self.observer.statistics.accesses.setdefault(
            instruction.line, statistics.Access(instruction, self.name, store)
        )
        access.bytes += size * len(ids)
        access.transactions += taken[0]
        access.ideal += taken[1]

    def transactions(self, ids: Array, places: Array, size: int) -> tuple[int, int] | None:
        """How many an access takes, and the least that carries its bytes; None: not counted."""
        return None


class GlobalSpace(Space):
    """Global and constant memory: the device's allocations."""

    name = "global"

    def __init__(
        self, observer: Observer, clocks: Clocks, device: Device, granule: int, *, races: bool
    ) -> None:
        super().__init__(observer, clocks, device.heap, granule)
        self.device = device
        granules = -(-device.used // granule)
        if races:
            self.shadow = Shadow(granules)
        self.touched = {
            store: np.zeros(granules if observer.profile else 0, bool) for store in (False, True)
        }

    def locate(self, lanes: Lanes, addresses: Array, size: int) -> tuple[Array, bool]:
        """See Space."""
        return self.device.translate(addresses, size)

    def describe(self, address: int) -> str:
        """See Space."""
        return self.device.describe(address)

    def place_name(self, place: int) -> str:
        """See Space."""
        for allocation in self.device.allocations:
            if allocation.start <= place < allocation.start + allocation.size:
                return f"byte {place - allocation.start} of {allocation.name}"
        return f"byte {place}"

    def count(
        self, ids: Array, places: Array, size: int, instruction: Instruction, *, store: bool
    ) -> None:
        """See Space."""
        super().count(ids, places, size, instruction, store=store)
        if self.observer.profile:
            self.touched[store][self.granules(places, size)] = True

    def transactions(self, ids: Array, places: Array, size: int) -> tuple[int, int] | None:
        """See Space."""
        return statistics.sectors(ids, places, size)


class SharedSpace(Space):
    """Shared memory of the blocks of a batch: `size` bytes each, `stride` apart in `data`."""

    name = "shared"

    def __init__(
        self,
        observer: Observer,
        clocks: Clocks,
        blocks: int,
        size: int,
        granule: int,
        *,
        races: bool,
    ) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // 128) * 128
        super().__init__(observer, clocks, np.zeros(blocks * self.stride, np.uint8), granule)
        self.state = np.zeros(len(self.data) // granule, np.uint8)
        if races:
            self.shadow = Shadow(len(self.data) // granule)
        lanes = np.arange(blocks * clocks.warps * WARP)
        # what to add to a shared address to find its place in `data`
        self.base = lanes // (clocks.warps * WARP) * self.stride - SHARED_BASE

    def reset(self) -> None:
        """Memory of new blocks: nothing is written yet."""
        self.data[:] = POISON
        if self.state is not None:
            self.state[:] = UNINITIALISED
        if self.shadow is not None:
            self.shadow.reset()

    def locate(self, lanes: Lanes, addresses: Array, size: int) -> tuple[Array, bool]:
        """See Space."""
        wide = addresses.astype(np.int64)
        inside = (wide >= SHARED_BASE) & (wide <= SHARED_BASE + self.size - size)
        places = wide + self.base[lanes.index]
        if inside.all():
            return places, True
        return np.where(inside, places, -1), False

    def describe(self, address: int) -> str:
        """See Space."""
        return f"byte {address - SHARED_BASE} of {self.size}"

    def place_name(self, place: int) -> str:
        """See Space."""
        return f"byte {place % self.stride}"

    def transactions(self, ids: Array, places: Array, size: int) -> tuple[int, int] | None:
        """See Space."""
        return statistics.bank_passes(ids, places % self.stride, size)


class LocalSpace(Space):
    """Local memory: `size` bytes of each lane's own."""

    name = "local"

    def __init__(self, observer: Observer, clocks: Clocks, lanes: int, size: int) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // 16) * 16
        super().__init__(observer, clocks, np.zeros(lanes * self.stride, np.uint8), 1)

    def reset(self) -> None:
        """Memory of new threads: nothing is written yet."""
        self.data[:] = POISON

    def locate(self, lanes: Lanes, addresses: Array, size: int) -> tuple[Array, bool]:
        """See Space."""
        wide = addresses.astype(np.int64)
        inside = (wide >= 0) & (wide <= self.size - size)
        places = wide + lanes.ids * self.stride
        if inside.all():
            return places, True
        return np.where(inside, places, -1), False

    def describe(self, address: int) -> str:
        """See Space."""
        return f"byte {address} of {self.size}"
