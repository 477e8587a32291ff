"""The broker refuses a topic, the password, the certificate: loud, and over when mended."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from conftest import MakeRig, Trial
from rig import Rig
from support.broker import HOST, Broker, free_port
from support.certificates import Authority
from support.daemon_process import STATION

BACK_S = 10.0  # as after any loss of the broker
USER = "station1"
ANYBODY = "topic readwrite #\n"
SECRET, OTHER = "correct horse", "battery staple"


def passwords(folder: Path, secret: str) -> Path:
    """mosquitto's password file."""
    path = folder / "passwords"
    path.write_text(f"{USER}:{secret}\n")
    path.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return path


def access(folder: Path, *denied: str) -> Path:
    """mosquitto's ACL: the daemon may do anything but write to these topics."""
    rules = "".join(f"topic deny {STATION}/{name}\n" for name in denied)
    path = folder / "acl"
    path.write_text(f"{ANYBODY}user {USER}\n{rules}{ANYBODY}")
    path.chmod(0o600)
    return path


@pytest.fixture
def guarded(make_rig: MakeRig, tmp_path: Path) -> Rig:
    """The daemon needs a password; PLC and recorder may do anything without one."""
    folder = tmp_path / "broker"
    folder.mkdir()
    files = f"password_file {passwords(folder, SECRET)}\nacl_file {access(folder)}"
    broker = Broker(folder, f"allow_anonymous true\n{files}")
    (tmp_path / "password").write_text(SECRET)
    rig = make_rig(broker=broker)
    return rig


def account(rig: Rig) -> dict[str, str]:
    return {"username": USER, "password_file": str(rig.folder / "password")}


@pytest.mark.fault(
    "ACL denies events",
    "the broker's ACL takes the right to `event` away for 30 parts, and gives it back",
    limit_s=BACK_S,
)
def test_events_denied(guarded: Rig, trial: Trial) -> None:
    rig = guarded
    rig.start(mqtt=account(rig))
    access(rig.folder / "broker", "event")
    rig.broker.reload()
    since = time.monotonic_ns()
    rig.wait_problem("denied: event")
    rig.recovery_s(since, 10)  # an audit in trouble does not stop the line
    rig.wait_parts(30)
    access(rig.folder / "broker")
    rig.broker.reload()
    trial.over(rig, time.monotonic_ns(), 20, parts=5)


@pytest.mark.fault(
    "ACL denies decisions",
    "the same with `decision`, of which the broker tells nobody (QoS 0), but the PLC's echo does",
    limit_s=BACK_S,
)
def test_decisions_denied(guarded: Rig, trial: Trial) -> None:
    rig = guarded
    rig.start(mqtt={**account(rig), "echo_timeout_s": 1.0})
    access(rig.folder / "broker", "decision")
    rig.broker.reload()
    denied = time.monotonic_ns()
    rig.wait_problem("unheard: decision")
    rig.wait_causes("no_decision", 20, denied)
    assert rig.recorder.all("state")[-1].data["problems"] == ["unheard: decision"]
    assert rig.daemon.log.count("check the broker's access rules for `decision`") == 1
    access(rig.folder / "broker")
    rig.broker.reload()
    mended = time.monotonic_ns()
    trial.recovered(rig.recovery_s(mended, 20))
    rig.wait_online(mended)
    rig.wait_parts(5)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "wrong password",
    "the broker comes back from kill -9 with another password; the file is corrected later",
    limit_s=BACK_S,
)
def test_wrong_password(guarded: Rig, trial: Trial) -> None:
    rig = guarded
    rig.start(mqtt=account(rig))
    killed = time.monotonic_ns()
    rig.broker.kill()
    passwords(rig.folder / "broker", OTHER)
    rig.restart_broker()
    rig.wait_said("Not authorized", 20)
    assert "the line is degraded: broker" in rig.daemon.log
    rig.wait_parts(10)
    assert rig.passes(killed) == 0
    (rig.folder / "password").write_text(OTHER)
    trial.over(rig, time.monotonic_ns(), 30, parts=5)


@pytest.mark.fault(
    "certificate expired",
    "the broker comes back from kill -9 with one that has expired; renewed later",
    limit_s=BACK_S,
)
def test_certificate_expired(make_rig: MakeRig, trial: Trial, tmp_path: Path) -> None:
    folder, secure = tmp_path / "broker", free_port()
    folder.mkdir()
    authority = Authority(tmp_path / "ca", "plant-ca")
    server = authority.issue("server")
    tls = f"listener {secure} {HOST}\ncertfile {server.cert}\nkeyfile {server.key}"
    rig = make_rig(broker=Broker(folder, f"allow_anonymous true\n{tls}"))
    rig.start(mqtt={"port": secure, "ca_file": str(authority.pem)})
    killed = time.monotonic_ns()
    rig.broker.kill()
    authority.issue("server", days=-1)
    rig.restart_broker()
    rig.wait_said("certificate has expired", 20)
    assert "the line is degraded: broker" in rig.daemon.log
    rig.wait_parts(10)
    assert rig.passes(killed) == 0
    rig.broker.kill()
    authority.issue("server")
    trial.over(rig, rig.restart_broker(), 30, parts=5)
