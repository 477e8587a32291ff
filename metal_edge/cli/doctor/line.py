"""A line: its settings, models, broker, cameras, and what it needs of the machine."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from metal_edge.bundle import Bundle
from metal_edge.cli.doctor.broker import check_broker
from metal_edge.cli.doctor.camera import check_cameras
from metal_edge.cli.doctor.certificates import check_tls
from metal_edge.cli.doctor.finding import Finding, Level, failure
from metal_edge.cli.doctor.places import check_metrics, check_permissions, check_places
from metal_edge.cli.doctor.running import running_daemon
from metal_edge.cli.doctor.watchdog import check_watchdog, slowest_inference_s
from metal_edge.daemon.changeover.proving import DEFAULT, prove, release, sources
from metal_edge.errors import MetalEdgeError
from metal_edge.runtime.shared import Engines
from metal_edge.settings import LineSettings, load_settings


def check_line(config: Path) -> list[Finding]:
    """All that can be said of the line without being in a running daemon's way."""
    # What goes wrong is in the findings, in better words.
    logging.getLogger("metal_edge.daemon").setLevel(logging.CRITICAL)
    try:
        settings = load_settings(config)
    except MetalEdgeError as error:
        return [failure("settings", error)]
    running = running_daemon(config, settings)
    findings = [Finding(Level.OK, "settings", str(config)), *_models(settings)]
    try:
        findings += check_tls(settings.mqtt, datetime.now(UTC))
    except MetalEdgeError as error:
        findings.append(failure("tls", error))
    broker, running = check_broker(settings, running)
    findings += [*broker, *check_cameras(settings, _bundles(settings), running)]
    findings += [*check_places(settings, os.environ), *check_permissions(settings)]
    return [*findings, *check_metrics(settings, running)]


def _models(settings: LineSettings) -> list[Finding]:
    """The bundles of the settings, and of each recipe: hashes, engine, golden images."""
    findings = []
    slowest_s = 0.0
    for recipe in (DEFAULT, *sorted(settings.recipes)):
        check = "bundle" if recipe == DEFAULT else f"recipe {recipe}"
        try:
            proven = prove(settings, recipe, "doctor", Engines())
        except MetalEdgeError as error:
            findings.append(failure(check, error))
            continue
        if proven is None:  # nobody asks it to stop
            continue
        parts = []
        for camera_id, model in proven.models.items():
            manifest, golden = model.bundle.manifest, model.bundle.golden
            parts.append(
                f"{model.bundle.path} ({manifest.precision}, {manifest.backend}): hashes match,"
                f" {len(golden.images)} golden images within {golden.tolerance:.2g}"
                f" (off by {proven.golden_difference[camera_id]:.2g})"
            )
        try:
            slowest_s = max(slowest_s, slowest_inference_s(proven.models.values()))
        except MetalEdgeError as error:
            findings.append(failure(check, error))
            continue
        finally:
            release(proven.models)
        findings.append(Finding(Level.OK, check, "; ".join(parts)))
    if slowest_s:
        findings.append(check_watchdog(settings, slowest_s, os.environ, os.getpid()))
    return findings


def _bundles(settings: LineSettings) -> dict[str, Bundle]:
    """By camera_id, those that can be opened; the others were told already."""
    bundles = {}
    for camera_id, source in sources(settings, DEFAULT).items():
        try:
            bundles[camera_id] = Bundle.open(source.bundle)
        except MetalEdgeError:
            continue
    return bundles
