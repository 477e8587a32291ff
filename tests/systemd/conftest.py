"""One booted machine for all tests here, with the project's own unit installed, unchanged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.broker import wait_until
from support.machine import CannotBootError, Ear, Machine
from support.tiny_bundle import build_bundle, write_image

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "build" / "systemd" / "root"
PACKAGES = "/opt/metal-edge/site-packages"
STATION = "metal/v1/acme/ulm/press-shop/press1/cam-top"
UNIT = "metal-edge@press1"
PASSWORD = "correct horse"  # noqa: S105  (of a broker that lives for one test run)
LOGIN = ("-u", "press1", "-P", PASSWORD)
SETTINGS = """
bundle = "bundle"

[station]
enterprise = "acme"
site = "ulm"
area = "press-shop"
line = "press1"
station = "cam-top"

[camera]
kind = "folder"
uri = "images"
loop = true

[decision]
deadline_ms = 5000

[mqtt]
host = "127.0.0.1"
username = "press1"
password_file = "/run/credentials/metal-edge@press1.service/mqtt-password"
"""
_MEASURED: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for row in _MEASURED:
        terminalreporter.write_line(f"measured: {row}")


@pytest.fixture
def measured() -> Callable[[str, float], None]:
    """Notes a time in seconds for the end of the run."""
    return lambda what, seconds: _MEASURED.append(f"{what}: {seconds:.2f} s")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machine sees as /etc/metal-edge (etc) and as mosquitto's settings (broker)."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("bin", "etc", "broker"):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)
    (folder / "broker" / "test.conf").write_text(
        "listener 1883 127.0.0.1\nallow_anonymous false\n"
        "password_file /etc/mosquitto/conf.d/passwords\n"
    )
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", folder / "broker" / "passwords", "press1", PASSWORD],
        check=True,
    )
    (folder / "broker" / "passwords").chmod(0o644)
    return folder


@pytest.fixture(scope="session")
def machine(folder: Path) -> Iterator[Machine]:
    """Its Python is the distribution's; the packages are those of this virtual environment."""
    if not (ROOT / ".ready").exists():
        pytest.skip("no machine to boot: `make test-systemd` makes it, as root, with debootstrap")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (ROOT / "usr/bin" / python).exists():
        pytest.skip(f"the machine has no {python}, and the packages here are for that")
    program = folder / "bin" / "metal-edge"
    program.write_text(
        f"#!/bin/sh\nexport PYTHONPATH=/opt/metal-edge/src:{PACKAGES}\n"
        f'exec /usr/bin/{python} -m metal_edge "$@"\n'
    )
    program.chmod(0o755)
    binds = {
        REPOSITORY / "systemd" / "metal-edge@.service": "/etc/systemd/system/metal-edge@.service",
        REPOSITORY / "metal_edge": "/opt/metal-edge/src/metal_edge",
        next(path for path in map(Path, sys.path) if path.name == "site-packages"): PACKAGES,
        folder / "bin": "/opt/metal-edge/bin",
        folder / "etc": "/etc/metal-edge",
        folder / "broker": "/etc/mosquitto/conf.d",
    }
    running = Machine(ROOT, binds, folder / "console.log")
    try:
        running.__enter__()
    except CannotBootError as error:
        pytest.skip(str(error))
    yield running
    running.__exit__()


class Press:
    """The service metal-edge@press1 in its machine."""

    def __init__(self, machine: Machine, etc: Path) -> None:
        self.machine = machine
        self.etc = etc
        self.settings = SETTINGS

    def start(self) -> None:
        """`systemctl start` returns when the daemon has said READY=1."""
        result = self.machine.call("systemctl", "start", UNIT)
        assert result.returncode == 0, self.journal()

    def show(self) -> dict[str, str]:
        return self.machine.show(UNIT)

    @property
    def pid(self) -> int:
        return int(self.show()["MainPID"])

    def journal(self) -> str:
        return self.machine.run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager")

    def kill(self, signal: str) -> None:
        self.machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal}", UNIT)

    def back_as_another(self, pid: int, timeout_s: float) -> None:
        """Waits until a new main process has said READY=1."""

        def ready() -> bool:
            now = self.show()
            return now["SubState"] == "running" and int(now["MainPID"]) not in {0, pid}

        wait_until(ready, "the service to be back", timeout_s)

    def trigger(self, trigger_id: str, part_id: str, answer: str = "") -> None:
        """`answer`: the topic for it, below the station's root."""
        wanted = ("-D", "publish", "response-topic", f"{STATION}/{answer}") if answer else ()
        self.machine.run(
            *("mosquitto_pub", "-h", "127.0.0.1", "-V", "5", "-q", "1", *LOGIN, *wanted),
            *("-t", f"{STATION}/cmd/trigger"),
            *("-m", f'{{"trigger_id": "{trigger_id}", "part_id": "{part_id}"}}'),
        )


@pytest.fixture
def press(machine: Machine, folder: Path) -> Iterator[Press]:
    """Not started yet; a good bundle and picture, the right password, an idle broker."""
    etc = folder / "etc"
    for name in ("bundle", "images"):
        shutil.rmtree(etc / name, ignore_errors=True)
    build_bundle(etc / "bundle")
    (etc / "images").mkdir()
    write_image(etc / "images" / "good.png", 51)
    (etc / "press1.toml").write_text(SETTINGS)
    password = etc / "press1.mqtt-password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    machine.run("systemctl", "start", "mosquitto")
    yield Press(machine, etc)
    journal = Press(machine, etc).journal()
    machine.run("systemctl", "stop", UNIT)
    machine.call("systemctl", "reset-failed", UNIT)
    machine.run("journalctl", "--rotate", "--vacuum-time=1s", "--quiet")
    sys.stdout.write(journal)  # pytest shows it when the test fails


@pytest.fixture
def ear(press: Press) -> Iterator[Ear]:
    """Hears everything that the station says."""
    with Ear(press.machine, STATION, *LOGIN) as listening:
        yield listening
