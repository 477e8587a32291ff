"""`metal-edge doctor`: each check says what was found and, if wrong, what to do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from metal_edge.cli.console import print_json, say_result
from metal_edge.cli.doctor.finding import Level
from metal_edge.cli.doctor.line import check_line
from metal_edge.cli.doctor.machine import check_machine
from metal_edge.errors import ExitCode


def run_doctor(config: Path | None, as_json: bool) -> None:
    """Runs every check and exits with 1 if one failed."""
    findings = check_machine()
    if config is not None:
        findings += check_line(config)
    failed = any(f.level is Level.FAIL for f in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            say_result(f"{finding.level:<5} {finding.check:<16} {finding.found}{remedy}")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)
