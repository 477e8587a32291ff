"""Loads, stores and atomics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx import numerics
from tools.ptx.decode import Context, instruction, space_of, vector
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.machine import Run
from tools.ptx.spaces import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_SIZE, Space
from tools.ptx.syntax import Address, Instruction, Operand, PtxError, Symbol
from tools.ptx.types import TYPES, Array

# Orderings under which simultaneous accesses are no race, and those that also order other accesses.
_STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"}
_DEVICE_SCOPES = {"gpu", "sys", "cluster"}
_ACQUIRE, _RELEASE = {"acquire", "acq_rel"}, {"release", "acq_rel"}
_SPACES = ("global", "shared", "local", "const")
# Hints that change no result.
_HINTS = {"nc", "cta", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "uni", "noftz", "v2", "v4", "v8"}


def _check_modifiers(item: Instruction, known: set[str]) -> None:
    for part in item.parts[1:-1]:
        hint = part.startswith(("L1::", "L2::", "level::")) or part in _HINTS
        if not hint and part.split("::")[0] not in known | set(_SPACES):
            raise ValueError(f"modifier .{part}")


def state_space(item: Instruction) -> str:
    """The state space that an instruction names, or "generic"."""
    for part in item.parts[1:]:
        if part.split("::")[0] in _SPACES:
            return part.split("::")[0]
    return "generic"


Each = Callable[[Space, Lanes, Array, Any], None]


class Route:
    """Sends the accesses of an instruction to the memories that its addresses lie in."""

    def __init__(self, context: Context, item: Instruction) -> None:
        self.context = context
        self.name = state_space(item)

    def send(self, lanes: Lanes, addresses: Array, each: Each) -> None:
        """Calls `each(space, lanes, addresses in it, which of the lanes)` for every memory."""
        if self.name != "generic":
            each(space_of(self.context, self.name), lanes, addresses, slice(None))
            return
        window = np.zeros(lanes.count, np.int8)
        for number, base in ((1, SHARED_WINDOW), (2, LOCAL_WINDOW)):
            inside = (addresses >= np.uint64(base)) & (addresses < np.uint64(base + WINDOW_SIZE))
            window[inside] = number
        targets = (
            (0, self.context.global_space, 0),
            (1, self.context.shared, SHARED_WINDOW),
            (2, self.context.local, LOCAL_WINDOW),
        )
        for number, space, base in targets:
            chosen = window == number
            some = lanes.where(chosen)
            if some is not None:
                each(space, some, addresses[chosen] - np.uint64(base), chosen)


class Ordering:
    """What the ordering words of an instruction ask for."""

    def __init__(self, context: Context, item: Instruction, *, atomic: bool = False) -> None:
        words = set(item.parts)
        self.clocks = context.machine.clocks
        self.releases = context.machine.releases
        self.strong = atomic or bool(words & _STRONG)
        device = bool(words & _DEVICE_SCOPES) or not words & {"cta"}
        self.acquire = bool(words & _ACQUIRE) and device
        self.release = bool(words & _RELEASE) and device
        self.carries = self.strong and state_space(item) in ("global", "generic")

    def before(self, lanes: Lanes) -> None:
        """A release is a fence, then the access."""
        if self.release:
            self.clocks.fence(lanes.warps)

    def after(
        self,
        space: Space,
        lanes: Lanes,
        addresses: Array,
        order: Array | slice,
        *,
        acquires: bool,
    ) -> None:
        """An acquire is the access, then a fence. `order`: that of the lanes' turns."""
        if self.carries and space.name == "global":
            places, _ = space.locate(lanes, addresses, 1)
            warps = lanes.ids // WARP
            self.releases.pass_through(self.clocks, warps[order], places[order], acquires)
        if self.acquire:
            self.clocks.fence(lanes.warps)


@instruction("ld", "ldu")
def build_load(context: Context, item: Instruction) -> Run:
    """Loads of one element or a vector from any memory or from the parameters."""
    if "param" in item.parts:
        return _load_parameter(context, item)
    _check_modifiers(item, {"weak", "gpu", "sys", "cluster", *_STRONG})
    type_name = item.parts[-1]
    dtype = TYPES[type_name]
    targets = vector(item.operands[0])
    outs = [context.write(target, type_name) for target in targets]
    address = context.address(item.operands[1])
    route = Route(context, item)
    ordering = Ordering(context, item)
    count = len(outs)

    def run(lanes: Lanes) -> None:
        def load(space: Space, some: Lanes, where: Array, chosen: Any) -> None:
            values = space.read(some, where, dtype, count, item, strong=ordering.strong)
            for place, out in enumerate(outs):
                out[some.index] = values[:, place]
            if ordering.strong:
                ordering.after(space, some, where, slice(None), acquires=True)

        route.send(lanes, address(lanes), load)

    return run


def _load_parameter(context: Context, item: Instruction) -> Run:
    type_name = item.parts[-1]
    dtype = TYPES[type_name]
    source = item.operands[1]
    if not isinstance(source, Address):
        raise ValueError("the operand is no address")
    targets = vector(item.operands[0])
    outs = [context.write(target, type_name) for target in targets]
    if not isinstance(source.base, Symbol):
        return _load_computed_parameter(context, item, outs)
    offset = context.parameters[source.base.name] + source.offset
    values = np.frombuffer(context.parameter_data, dtype, len(targets), offset)

    def run(lanes: Lanes) -> None:
        for out, value in zip(outs, values, strict=True):
            out[lanes.index] = value

    return run


def _load_computed_parameter(context: Context, item: Instruction, outs: list[Any]) -> Run:
    """From an address in a register, which `mov` took from a parameter's name."""
    dtype = TYPES[item.parts[-1]]
    data = np.frombuffer(context.parameter_data, np.uint8)
    address = context.address(item.operands[1])
    width = len(outs) * dtype.itemsize

    def run(lanes: Lanes) -> None:
        first = address(lanes).astype(np.int64)
        if (first < 0).any() or (first + width > len(data)).any():
            raise PtxError(f"PTX line {item.line}: no parameter lies there: {item.text}")
        raw = data[first[:, None] + np.arange(width)]
        values = np.ascontiguousarray(raw).view(dtype)
        for place, out in enumerate(outs):
            out[lanes.index] = values[:, place]

    return run


@instruction("st")
def build_store(context: Context, item: Instruction) -> Run:
    """Stores of one element or a vector."""
    _check_modifiers(item, {"weak", "gpu", "sys", "cluster", *_STRONG})
    type_name = item.parts[-1]
    dtype = TYPES[type_name]
    address = context.address(item.operands[0])
    reads = [context.read(source, type_name) for source in vector(item.operands[1])]
    route = Route(context, item)
    ordering = Ordering(context, item)

    def run(lanes: Lanes) -> None:
        values = np.empty((lanes.count, len(reads)), dtype)
        for place, read in enumerate(reads):
            values[:, place] = read(lanes.index)

        def store(space: Space, some: Lanes, where: Array, chosen: Any) -> None:
            space.write(some, where, values[chosen], item, strong=ordering.strong)
            if ordering.strong:
                ordering.after(space, some, where, slice(None), acquires=False)

        ordering.before(lanes)
        route.send(lanes, address(lanes), store)

    return run


def _increment(old: Any, limit: Any) -> Any:
    return old.dtype.type(0) if old >= limit else old + old.dtype.type(1)


def _decrement(old: Any, limit: Any) -> Any:
    return limit if old == 0 or old > limit else old - old.dtype.type(1)


def _packed_add(old: Any, value: Any) -> Any:
    return numerics.pack_halves(numerics.as_halves(old) + numerics.as_halves(value))


_ATOMIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, value: value,
    "inc": _increment,
    "dec": _decrement,
    "cas": lambda old, expected, value: value if old == expected else old,
}


def _operation(item: Instruction) -> Callable[..., Any]:
    type_name = item.parts[-1]
    name = next((part for part in item.parts[1:] if part in _ATOMIC), None)
    if name is None or (name != "add" and type_name in ("f16", "f32", "f64", "f16x2")):
        raise ValueError("unknown atomic operation")
    if type_name == "f16x2":
        return _packed_add
    if type_name in ("bf16", "bf16x2"):
        raise ValueError(f"atomics on .{type_name}")
    return _ATOMIC[name]


@instruction("atom", "red")
def build_atomic(context: Context, item: Instruction) -> Run:
    """Atomic read-modify-write; lanes take their turns in any order."""
    _check_modifiers(item, {"gpu", "sys", "cluster", *_STRONG, *_ATOMIC})
    returns = item.parts[0] == "atom"
    type_name = item.parts[-1]
    dtype = TYPES[type_name]
    function = _operation(item)
    operands: list[Operand] = list(item.operands)
    out = context.write(operands.pop(0), type_name) if returns else None
    address = context.address(operands.pop(0))
    reads = [context.read(operand, type_name) for operand in operands]
    route = Route(context, item)
    ordering = Ordering(context, item, atomic=True)
    machine = context.machine

    def run(lanes: Lanes) -> None:
        values = [np.broadcast_to(read(lanes.index), (lanes.count,)) for read in reads]

        def update(space: Space, some: Lanes, where: Array, chosen: Any) -> None:
            places, good = space.check(some, where, dtype.itemsize, item)
            if good is not None:
                fewer = some.where(good)
                if fewer is not None:
                    picked = np.arange(lanes.count)[chosen][good]
                    update(space, fewer, where[good], picked)
                return
            order = machine.random.permutation(some.count)
            space.note_atomic(some, places, dtype.itemsize, item, order)
            space.count(some.ids, places, dtype.itemsize, item, store=True)
            memory = space.data.view(dtype)
            before = np.empty(some.count, dtype)
            picked_values = [value[chosen] for value in values]
            index = places // dtype.itemsize
            for turn in order.tolist():
                place = index[turn]
                before[turn] = memory[place]
                memory[place] = function(memory[place], *[value[turn] for value in picked_values])
            if out is not None:
                out[some.index] = before
            ordering.after(space, some, where, order, acquires=returns)

        ordering.before(lanes)
        route.send(lanes, address(lanes), update)

    return run


@instruction("prefetch", "prefetchu", "discard", "applypriority")
def build_prefetch(context: Context, item: Instruction) -> Run:
    """Hints to the caches: nothing to do."""
    return lambda lanes: None


@instruction("isspacep")
def build_isspacep(context: Context, item: Instruction) -> Run:
    """Whether a generic address lies in a state space."""
    space = item.parts[1].split("::")[0]
    out = context.write(item.operands[0], "pred")
    value = context.read(item.operands[1], "u64")

    def run(lanes: Lanes) -> None:
        addresses = np.asarray(value(lanes.index))
        shared = addresses - np.uint64(SHARED_WINDOW) < WINDOW_SIZE
        local = addresses - np.uint64(LOCAL_WINDOW) < WINDOW_SIZE
        inside = {"shared": shared, "local": local, "global": ~(shared | local)}
        out[lanes.index] = inside[space]

    return run
