"""How many blocks of a kernel an SM holds at once, by NVIDIA's rules. Pure.

The rules are those of `cuda_occupancy.h` (CUDA 13.0), which a test compiles and compares with. The
limits stand in the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
_MAX_THREADS_PER_BLOCK = 1024
_REGISTERS = 64 * 1024  # per SM, and per block
_MAX_REGISTERS_PER_THREAD = 255
_REGISTER_UNIT = 256  # a warp's registers come in multiples of this
_PARTITIONS = 4  # of an SM; a warp and its registers live in one
_SHARED_UNIT = 128
_RESERVED_SHARED = 1024  # per block, by the driver, since compute capability 8.0
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What an SM of one compute capability can hold at once.

    Attributes:
        architecture: as nvcc names it.
        threads, blocks: resident.
        shared: bytes; the rest of the L1's memory stays cache, by the carve-out.
    """

    architecture: str
    threads: int
    blocks: int
    shared: int

    @property
    def warps(self) -> int:
        """Resident."""
        return self.threads // WARP

    @property
    def shared_per_block(self) -> int:
        """Bytes a block may ask for, by opting in beyond 48 KiB."""
        return self.shared - _RESERVED_SHARED


# NVIDIA Thor (11.0) reports 1536 threads and 228 KiB per SM through deviceQuery as well.
LIMITS = {
    "sm_87": Limits("sm_87", threads=1536, blocks=16, shared=164 * _KIB),
    "sm_110": Limits("sm_110", threads=1536, blocks=24, shared=228 * _KIB),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one block of a kernel needs.

    Attributes:
        threads: per block.
        registers: per thread, as ptxas reports them.
        shared: bytes per block, static and dynamic together.
    """

    threads: int
    registers: int
    shared: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What an SM holds of it.

    Attributes:
        blocks: at once; 0: a launch fails.
        share: resident warps of those that an SM can hold, 0 to 1.
        bound_by: what allows no more: `threads`, `registers`, `shared memory` or `blocks`.
    """

    blocks: int
    share: float
    bound_by: str


def occupancy(usage: Usage, limits: Limits) -> Occupancy:
    """Blocks per SM, with the carve-out that a kernel which needs much shared memory is given.

    Raises:
        ValueError: a block without threads, or a negative number.
    """
    if usage.threads < 1 or usage.registers < 0 or usage.shared < 0:
        raise ValueError(f"{usage} is no block")
    warps = -(-usage.threads // WARP)
    bounds = {
        "threads": limits.warps // warps if usage.threads <= _MAX_THREADS_PER_BLOCK else 0,
        "registers": _by_registers(usage.registers, warps),
        "shared memory": _by_shared(usage.shared, limits),
        "blocks": limits.blocks,
    }
    bound_by = min(bounds, key=lambda name: bounds[name])
    blocks = bounds[bound_by]
    return Occupancy(blocks, blocks * warps / limits.warps, bound_by)


def _by_registers(registers: int, warps: int) -> int:
    if registers > _MAX_REGISTERS_PER_THREAD:
        return 0
    per_warp = _rounded_up(registers * WARP, _REGISTER_UNIT)
    if per_warp == 0:
        return _REGISTERS
    return _REGISTERS // _PARTITIONS // per_warp * _PARTITIONS // warps


def _by_shared(shared: int, limits: Limits) -> int:
    per_block = _rounded_up(shared + _RESERVED_SHARED, _SHARED_UNIT)
    return limits.shared // per_block if shared <= limits.shared_per_block else 0


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
