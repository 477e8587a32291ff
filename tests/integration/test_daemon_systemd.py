"""What the service manager sees: notifications on a real socket, and the unit file itself."""

from __future__ import annotations

import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.broker import Listener, wait_until
from support.notify import Manager

from metal_edge.settings import load_settings

if TYPE_CHECKING:
    from conftest import StartDaemon

UNIT = Path(__file__).parents[2] / "systemd" / "metal-edge@.service"
needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify") if request.param == "path" else f"@metal-{uuid.uuid4()}"
    receiver = Manager(path)
    yield receiver
    receiver.close()


def test_ready_watchdog_and_stopping(
    start: StartDaemon, listener: Listener, manager: Manager
) -> None:
    daemon = start({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"})
    wait_until(lambda: manager.heard().count("WATCHDOG=1") >= 3, "three signs of life")
    seen = manager.heard()
    assert seen.count("READY=1") == 1
    assert seen.index("READY=1") < seen.index("WATCHDOG=1")
    # READY means armed: the birth was on the wire before.
    assert listener.wait("state").data["status"] == "online"
    assert "STOPPING=1" not in seen
    assert daemon.stop() == 0
    assert "STOPPING=1" in manager.heard()


def test_a_line_that_cannot_be_armed_never_says_ready(start: StartDaemon, manager: Manager) -> None:
    daemon = start({"NOTIFY_SOCKET": manager.address}, bundle="nowhere")
    assert daemon.exit_code() == 66
    assert "READY=1" not in manager.heard()


def test_no_watchdog_for_another_process(
    start: StartDaemon, listener: Listener, manager: Manager
) -> None:
    watchdog = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    daemon = start({"NOTIFY_SOCKET": manager.address, **watchdog})
    daemon.armed(listener)
    wait_until(lambda: len(listener.all("heartbeat")) > 5, "heartbeats")
    assert "WATCHDOG=1" not in manager.heard()
    daemon.process.send_signal(signal.SIGTERM)


def test_the_examples_are_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (UNIT.parent / "metal-edge.env.example").read_text(encoding="utf-8").splitlines():
        if row and not row.startswith("#"):
            monkeypatch.setenv(*row.split("=", 1))
    settings = load_settings(UNIT.parent / "metal-edge.example.toml")
    assert settings.station.topic_root == "metal/v1/acme/ulm/press-shop/press1/cam-top"
    assert settings.runtime.threads == 2  # the environment wins over the file


@needs_systemd_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Verified as an instance; the program it starts is not installed here."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/metal-edge/bin/metal-edge", "/bin/true")
    unit = tmp_path / "metal-edge@.service"
    unit.write_text(text, encoding="utf-8")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [row for row in result.stderr.splitlines() if "metal-edge" in row]
    assert complaints == []
    assert result.returncode == 0, result.stderr


@needs_systemd_analyze
def test_the_unit_is_sandboxed() -> None:
    """Exposure goes from 10 (bare: 9.6) to 0; systemd counts it in tenths here."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=23", str(UNIT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
