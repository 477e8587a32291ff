"""`metal-edge doctor`: each check says what was found and, if wrong, what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import typer

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json, say_result
from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.clock import SystemClock, read_clock_state
from metal_edge.errors import ExitCode, MetalEdgeError, UnavailableError
from metal_edge.runtime.load import check_golden, load_runner
from metal_edge.runtime.plugin import find_plugin
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt
from metal_edge.settings import LineSettings, load_settings

MIN_FREE_GIB = 1.0


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    check: str
    found: str
    remedy: str = ""


def run_doctor(config: Path | None, as_json: bool) -> None:
    """Runs every check and exits with 1 if one failed."""
    findings = [
        _python(),
        _onnxruntime(),
        _training(),
        _tensorrt(),
        _plugin(),
        _mosquitto(),
        _disk(),
        _clock(),
    ]
    if config is not None:
        findings += _line(config)
    failed = any(f.level is Level.FAIL for f in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            say_result(f"{finding.level:<5} {finding.check:<16} {finding.found}{remedy}")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)


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


def _line(config: Path) -> list[Finding]:
    try:
        settings = load_settings(config)
    except MetalEdgeError as error:
        return [Finding(Level.FAIL, "settings", error.what, error.remedy)]
    checks: tuple[tuple[str, Callable[[LineSettings], str]], ...] = (
        ("bundle", _check_bundle),
        ("camera", _check_camera),
        ("broker", _check_broker),
    )
    found = [Finding(Level.OK, "settings", str(config))]
    for name, check in checks:
        try:
            found.append(Finding(Level.OK, name, check(settings)))
        except MetalEdgeError as error:
            found.append(Finding(Level.FAIL, name, error.what, error.remedy))
    return found


def _check_bundle(settings: LineSettings) -> str:
    bundle = Bundle.open(settings.bundle)
    with load_runner(bundle, settings.runtime.threads) as runner:
        golden = check_golden(bundle, runner)
    return (
        f"{bundle.path} ({bundle.manifest.precision}, {bundle.manifest.backend}): hashes match,"
        f" {golden.images} golden images within {golden.tolerance:.2g}"
    )


def _check_camera(settings: LineSettings) -> str:
    camera = create_camera(settings.camera, SystemClock())
    camera.open()
    try:
        camera.trigger(None)
        frame = camera.grab(settings.camera.timeout_s)
    finally:
        camera.close()
    height, width = frame.image.shape[:2]
    return f"{settings.camera.kind} gave a {width}x{height} frame ({frame.frame_id})"


def _check_broker(settings: LineSettings) -> str:
    host, port = settings.mqtt.host, settings.mqtt.port
    try:
        with socket.create_connection((host, port), settings.mqtt.connect_timeout_s):
            return f"{host}:{port} accepts connections"
    except OSError as error:
        raise UnavailableError(
            f"no broker at {host}:{port} ({error.strerror or error})",
            "start it, or correct [mqtt] host and port",
        ) from error
