"""The machine itself: what is installed, room and clock."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from metal_edge.cli.doctor.finding import Finding, Level
from metal_edge.daemon.clock import read_clock_state
from metal_edge.errors import UnavailableError
from metal_edge.runtime.plugin import find_plugin
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt

MIN_FREE_GIB = 1.0


def check_machine() -> list[Finding]:
    """Python, back ends, disk and clock."""
    return [
        _python(),
        _onnxruntime(),
        _training(),
        _tensorrt(),
        _plugin(),
        _mosquitto(),
        _disk(),
        _clock(),
    ]


def _python() -> Finding:
    version = sys.version.split()[0]
    return Finding(Level.OK, "python", f"{version} at {sys.executable}")


def _onnxruntime() -> Finding:
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    cores = len(os.sched_getaffinity(0))
    return Finding(
        Level.OK, "onnxruntime", f"{onnxruntime.__version__} ({providers}), {cores} cores"
    )


def _training() -> Finding:
    missing = [
        name
        for name in ("torch", "safetensors", "onnx", "onnxscript", "onnxsim")
        if importlib.util.find_spec(name) is None
    ]
    if not missing:
        return Finding(Level.OK, "training", "torch and the export packages are installed")
    return Finding(
        Level.NOTE,
        "training",
        f"not installed: {', '.join(missing)} (the daemon does not need them)",
        "to train here: pip install 'metal-edge[train]'",
    )


def _tensorrt() -> Finding:
    missing = missing_for_tensorrt()
    if missing is None:
        return Finding(Level.OK, "tensorrt", "a GPU, tensorrt and CUDA for Python are there")
    return Finding(Level.NOTE, "tensorrt", f"{missing}; bundles run on ONNX Runtime")


def _plugin() -> Finding:
    try:
        plugin = find_plugin()
    except UnavailableError as error:
        return Finding(Level.FAIL, "plugin", error.what, error.remedy)
    if plugin is None:
        return Finding(Level.NOTE, "plugin", "not installed; TensorRT runs attention itself")
    return Finding(Level.OK, "plugin", f"{plugin.path}, SHA-256 {plugin.sha256[:8]}...")


def _mosquitto() -> Finding:
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path:
        return Finding(Level.OK, "mosquitto", path)
    return Finding(
        Level.NOTE,
        "mosquitto",
        "no broker on this machine",
        "for the demo: apt-get install mosquitto",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free >= MIN_FREE_GIB:
        return Finding(Level.OK, "disk", f"{free:.1f} GiB free in {Path.cwd()}")
    return Finding(
        Level.FAIL, "disk", f"only {free:.2f} GiB free in {Path.cwd()}", "free some space"
    )


def _clock() -> Finding:
    state = read_clock_state()
    if state.synced is None:
        return Finding(Level.NOTE, "clock", "the kernel does not say whether it is synchronised")
    if state.synced:
        return Finding(Level.OK, "clock", "synchronised")
    return Finding(
        Level.NOTE,
        "clock",
        "not synchronised: time stamps of this machine cannot be compared with others",
        "enable systemd-timesyncd, chrony or ptp4l",
    )
