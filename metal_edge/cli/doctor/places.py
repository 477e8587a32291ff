"""What the line needs of the machine: room on disks, device nodes, priorities, a port."""

from __future__ import annotations

import getpass
import importlib.util
import os
import resource
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from metal_edge.cli.doctor.finding import Finding, Level
from metal_edge.daemon.records.places import state_folder
from metal_edge.settings import CameraSettings, LineSettings


def check_places(settings: LineSettings, environment: Mapping[str, str]) -> list[Finding]:
    """Outbox and evidence: writable, and room for what the settings allow them."""
    state = state_folder(settings, environment)
    outbox = settings.outbox.path or (state and state / "outbox.sqlite")
    pictures = settings.evidence.path or (state and state / "evidence")
    findings = []
    if outbox is None:
        findings.append(
            Finding(
                Level.NOTE,
                "outbox",
                "in memory: audit events do not survive a crash",
                "set outbox.path; under systemd StateDirectory= is enough",
            )
        )
    else:
        findings.append(_place("outbox", outbox.parent, settings.outbox.max_mb))
    if pictures is not None:
        findings.append(_place("evidence", pictures, settings.evidence.max_mb))
    elif settings.evidence.keep != "none":
        findings.append(
            Finding(
                Level.FAIL,
                "evidence",
                f"evidence.keep = {settings.evidence.keep}, but there is no place for pictures",
                "set evidence.path; under systemd StateDirectory= is enough",
            )
        )
    return findings


def _place(check: str, folder: Path, limit_mb: float) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        return Finding(Level.FAIL, check, f"{there} is no folder", "move it away")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            Level.FAIL,
            check,
            f"{getpass.getuser()} cannot write to {there}",
            "run this as the service's user, or give it the folder (chown)",
        )
    free_mb = shutil.disk_usage(there).free / 1e6
    found = f"{folder}: {free_mb / 1e3:.1f} GB free, at most {limit_mb / 1e3:.1f} GB wanted"
    if free_mb < limit_mb:
        return Finding(Level.WARN, check, found, f"free some space, or lower {check}.max_mb")
    return Finding(Level.OK, check, found)


def check_permissions(settings: LineSettings) -> list[Finding]:
    """Device nodes and priorities, as the user who asks has them."""
    cameras = (settings.camera, *settings.views)
    findings = [_device(camera) for camera in cameras if camera.kind == "v4l2"]
    wanted, have = set(settings.runtime.cpus), os.sched_getaffinity(0)
    if not wanted <= have:
        findings.append(
            Finding(
                Level.FAIL,
                "cpus",
                f"runtime.cpus wants {sorted(wanted)}, this process may use {sorted(have)}",
                "correct runtime.cpus, or CPUAffinity= of the unit",
            )
        )
    priority = settings.runtime.realtime_priority
    if priority and not _may_be_realtime(priority):
        findings.append(
            Finding(
                Level.WARN,
                "realtime",
                f"{getpass.getuser()} may not use runtime.realtime_priority = {priority}",
                f"LimitRTPRIO={priority} in the unit, see docs/lifecycle.md",
            )
        )
    return findings


def _device(camera: CameraSettings) -> Finding:
    node = Path(camera.uri)
    if not node.exists():
        return Finding(
            Level.FAIL,
            "device",
            f"{node} is not there",
            "check the cable, and `v4l2-ctl --list-devices`",
        )
    if os.access(node, os.R_OK | os.W_OK):
        return Finding(Level.OK, "device", f"{node} can be opened")
    return Finding(
        Level.FAIL,
        "device",
        f"{getpass.getuser()} may not open {node} (group {node.group()})",
        f"usermod -aG {node.group()} USER; the unit: SupplementaryGroups={node.group()}",
    )


def _may_be_realtime(priority: int) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    return os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= priority


def check_metrics(settings: LineSettings, running: str | None) -> list[Finding]:
    """The package, and a port that nobody else has."""
    port, host = settings.metrics.port, settings.metrics.host
    if port is None:
        return []
    if importlib.util.find_spec("prometheus_client") is None:
        text = "metrics.port is set, but prometheus-client is not installed"
        return [Finding(Level.WARN, "metrics", text, "pip install 'metal-edge[metrics]'")]
    if running is not None:
        return [Finding(Level.NOTE, "metrics", f"{host}:{port} is left to {running}")]
    try:
        with socket.create_server((host, port)):
            return [Finding(Level.OK, "metrics", f"{host}:{port} is free")]
    except OSError as error:
        text = f"{host}:{port} cannot be used ({error.strerror})"
        return [Finding(Level.WARN, "metrics", text, "choose another metrics.port")]
