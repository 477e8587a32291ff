"""An interpreter of PTX that checks what it runs; see README.md in this folder."""

from tools.ptx.device import Device
from tools.ptx.launch import launch
from tools.ptx.parser import Module
from tools.ptx.report import Kind, Report, Violation, ViolationError
from tools.ptx.statistics import Access, Statistics
from tools.ptx.syntax import PtxError

__all__ = [
    "Access",
    "Device",
    "Kind",
    "Module",
    "PtxError",
    "Report",
    "Statistics",
    "Violation",
    "ViolationError",
    "launch",
]
