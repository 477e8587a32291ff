"""Time floors: what a board's memory, tensor cores and exponentials allow at best. Pure.

No kernel whose tensors come from DRAM can be faster than its floor; how much slower it is, only a
device can show.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.bench.modules import MODULES, Module

# Multiply-accumulates per clock and SM on tensor cores, dense. The test holds them against the data
# sheets' totals. Thor's are those of Blackwell's own instructions (tcgen05); what `mma.sync`, which
# these kernels use, reaches there is not published, so Thor's floors are low.
TENSOR_MACS = {"sm_87": {"fp16": 1024, "int8": 2048}, "sm_110": {"fp16": 4096, "int8": 8192}}
# 32-bit ex2 per clock and SM: CUDA C++ Programming Guide, "Throughput of Native Arithmetic
# Instructions", special functions.
EXPONENTIALS = 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A board's GPU at its highest clock.

    Attributes:
        clock: GHz.
        source: where SMs and clock stand.
    """

    module: Module
    architecture: str
    multiprocessors: int
    clock: float
    source: str

    def peak_macs(self, precision: str) -> float:
        """Dense multiply-accumulates per second on tensor cores; `fp16` or `int8`."""
        return TENSOR_MACS[self.architecture][precision] * self.multiprocessors * self.clock * 1e9

    @property
    def peak_exponentials(self) -> float:
        """Per second."""
        return EXPONENTIALS * self.multiprocessors * self.clock * 1e9


_NANO, _NX, _AGX, _THOR = MODULES
GPUS = (
    Gpu(
        _NANO,
        "sm_87",
        8,
        1.020,
        'the data sheet above: 1024 CUDA cores (8 SMs), "Super" clock 1020 MHz, 67 sparse TOPS',
    ),
    Gpu(
        _NX,
        "sm_87",
        8,
        1.173,
        "1024 CUDA cores (8 SMs), 918 MHz, and 1173 MHz in the Super mode of JetPack 6.2",
    ),
    Gpu(
        _AGX,
        "sm_87",
        16,
        1.300,
        'NVIDIA, "Jetson AGX Orin Series Technical Brief": 2048 CUDA cores (16 SMs), 1.3 GHz, 170'
        " sparse INT8 TOPS",
    ),
    Gpu(
        _THOR,
        "sm_110",
        20,
        1.575,
        "2560 CUDA cores (20 SMs, as deviceQuery lists them), 1.575 GHz, 1035 sparse FP8 TFLOPS;"
        " INT8 taken to be as fast as FP8",
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What a problem needs at least, however it is computed.

    Attributes:
        read, written: bytes of global memory, each byte once.
        fp16_macs, int8_macs: on tensor cores.
        exponentials: of the softmax.
    """

    read: int
    written: int
    fp16_macs: int
    int8_macs: int
    exponentials: int


@dataclass(frozen=True, slots=True)
class Floor:
    """Microseconds, each resource alone and fully used."""

    memory: float
    tensor: float
    exponentials: float

    @property
    def total(self) -> float:
        """They can overlap, so the slowest decides."""
        return max(self.memory, self.tensor, self.exponentials)

    @property
    def bound_by(self) -> str:
        """`memory`, `tensor` or `exponentials`."""
        names = ("memory", "tensor", "exponentials")
        return max(names, key=lambda name: float(getattr(self, name)))


def floor(work: Work, gpu: Gpu) -> Floor:
    """The floors of one problem on one board."""
    tensor = work.fp16_macs / gpu.peak_macs("fp16") + work.int8_macs / gpu.peak_macs("int8")
    return Floor(
        memory=1e6 * (work.read + work.written) / (gpu.module.bandwidth * 1e9),
        tensor=1e6 * tensor,
        exponentials=1e6 * work.exponentials / gpu.peak_exponentials,
    )
