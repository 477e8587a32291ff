"""Boards that metal_edge is for, and the bandwidth of their memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A board.

    Attributes:
        bandwidth: of its DRAM, GB/s (1e9 bytes), as its maker gives it.
        source: where that stands.
    """

    name: str
    bandwidth: float
    source: str


MODULES = (
    Module(
        "Orin Nano 8 GB (Super)",
        102.0,
        'NVIDIA, "Jetson Orin Nano Super Developer Kit" data sheet, December 2024: 8 GB 128-bit'
        " LPDDR5, 102 GB/s (68 GB/s before the Super clocks)",
    ),
    Module(
        "Orin NX 16 GB",
        102.4,
        'NVIDIA, "Jetson Orin NX Series Modules" data sheet DS-10712-001: 16 GB 128-bit LPDDR5,'
        " 102.4 GB/s",
    ),
    Module(
        "AGX Orin 64 GB",
        204.8,
        'NVIDIA, "Jetson AGX Orin Series" data sheet DS-10662-001: 64 GB 256-bit LPDDR5,'
        " 204.8 GB/s",
    ),
    Module(
        "Thor T5000",
        273.0,
        'NVIDIA, "Jetson Thor Series Modules" data sheet: 128 GB 256-bit LPDDR5X, 273 GB/s',
    ),
)
