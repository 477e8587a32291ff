"""`metal-edge doctor --config`: real failures of a line, and a daemon that must not notice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.broker import HOST, Broker, Listener, find_mosquitto
from support.certificates import Authority
from support.cli import COMMAND, cli
from support.daemon_process import STATION, Daemon, write_settings
from support.small_disk import small_disk
from support.tiny_bundle import DARK, build_bundle, describe_again, flip_byte, seal, write_image

from metal_edge.cli.doctor import machine
from metal_edge.cli.doctor.certificates import ends_at
from metal_edge.daemon.clock import ClockState

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
OWN = {"decision", "event", "heartbeat", "state", "model", "config"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.png", DARK)
    (tmp_path / "broker").mkdir()
    return tmp_path


@pytest.fixture
def broker(folder: Path) -> Iterator[Broker]:
    with Broker(folder / "broker") as running:
        yield running


def findings(config: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and by check the finding."""
    done = cli("doctor", "--config", config, "--json")
    return done.code, {check["check"]: check for check in done.json["checks"]}


@pytest.mark.parametrize("sign", ["command line", "lock"])
def test_a_running_daemon_is_left_alone(broker: Broker, folder: Path, sign: str) -> None:
    sections: dict[str, Any] = {"metrics": {"port": 0}}
    if sign == "lock":
        sections["outbox"] = {"path": "outbox.sqlite"}
    config = write_settings(folder / "line.toml", broker, **sections)
    other = config if sign == "command line" else folder / "other.toml"
    other.write_text(config.read_text())
    with Listener(broker) as heard, Daemon(other) as daemon:
        session = daemon.armed(heard)["session_id"]
        heard.wait("heartbeat")
        heard.wipe()
        code, found = findings(config)
        assert code == 0
        assert f"process {daemon.process.pid}" in found["publishing"]["found"]
        assert found["metrics"]["level"] == "note"
        said = [message for name in OWN for message in heard.all(name)]
        assert said
        assert {message.data["session_id"] for message in said} == {session}
        assert not heard.all("state")  # nothing became of it, for better or worse
        assert daemon.stop() == 0


def test_a_daemon_on_another_machine_is_heard(broker: Broker, folder: Path) -> None:
    config = write_settings(folder / "line.toml", broker)
    (folder / "copy").mkdir()
    other = write_settings(
        folder / "copy" / "line.toml",
        broker,
        bundle=str(folder / "bundle"),
        camera={"uri": str(folder / "images")},
    )
    with Listener(broker) as heard, Daemon(other) as daemon:
        daemon.armed(heard)
        _, found = findings(config)
        assert "heartbeat" in found["publishing"]["found"]


def test_nothing_stays_behind(broker: Broker, folder: Path) -> None:
    """No retained message, no verdict, no sign of life that anybody could believe."""
    config = write_settings(folder / "line.toml", broker)
    with Listener(broker) as heard:
        code, found = findings(config)
        assert code == 0
        assert found["publishing"]["level"] == "ok"
        assert found["watchdog"]["level"] == "ok", "measured on this very machine"
        said = [message for name in OWN for message in heard.all(name)]
        assert {message.name for message in said} == OWN
        assert all(isinstance(message.data, ValueError) for message in said)
    with Listener(broker) as later:
        later.trigger(STATION, "last", "p")
        later.wait("trigger")  # what is retained comes before
        assert not [message for name in OWN for message in later.all(name)]


@pytest.mark.parametrize(
    "allowed", [{"decision", "state"}, OWN - {"decision"}], ids=["most", "decision"]
)
def test_access_rules(folder: Path, allowed: set[str]) -> None:
    """That `decision` is denied, a daemon cannot see: it has no acknowledgement."""
    rules = folder / "acl"
    granted = "".join(f"topic write {STATION}/{name}\n" for name in sorted(allowed))
    rules.write_text(f"topic read #\n{granted}")
    with Broker(folder / "broker", f"allow_anonymous true\nacl_file {rules}") as broker:
        code, found = findings(write_settings(folder / "line.toml", broker))
    assert code == 1
    publishing = found["publishing"]
    assert publishing["level"] == "FAIL"
    for name in OWN:
        assert (f"{name} (Not authorized)" in publishing["found"]) == (name not in allowed)
    assert publishing["remedy"]


def test_no_credentials(folder: Path) -> None:
    (folder / "passwords").touch(mode=0o600)
    extra = f"allow_anonymous false\npassword_file {folder / 'passwords'}"
    with Broker(folder / "broker", extra) as broker:
        code, found = findings(write_settings(folder / "line.toml", broker))
    assert code == 1
    assert "Not authorized" in found["broker"]["found"]
    assert "mqtt.username" in found["broker"]["remedy"]


@pytest.mark.parametrize(
    ("days", "level"), [(300, "ok"), (20, "warn"), (-1, "FAIL")], ids=["fresh", "soon", "expired"]
)
def test_certificates(folder: Path, days: int, level: str) -> None:
    ours = Authority(folder / "ours", "our-ca")
    server, own = ours.issue("server", days=300), ours.issue("own", days=days)
    extra = (
        f"allow_anonymous true\ncafile {ours.pem}\ncertfile {server.cert}\nkeyfile {server.key}\n"
    )
    with Broker(folder / "broker", extra) as broker:
        mqtt = {"ca_file": str(ours.pem), "cert_file": str(own.cert), "key_file": str(own.key)}
        code, found = findings(write_settings(folder / "line.toml", broker, mqtt=mqtt))
    assert found["tls own"]["level"] == level
    assert code == (1 if level == "FAIL" else 0)
    assert found["tls broker"]["level"] == found["tls authority"]["level"] == "ok"
    expected = datetime.now(UTC) + timedelta(days=days)
    assert abs(ends_at(own.cert) - expected) < timedelta(hours=2)


def test_a_broker_whose_certificate_has_expired(folder: Path) -> None:
    ours = Authority(folder / "ours", "our-ca")
    server = ours.issue("server", days=-1)
    extra = f"allow_anonymous true\ncertfile {server.cert}\nkeyfile {server.key}\n"
    with Broker(folder / "broker", extra) as broker:
        code, found = findings(
            write_settings(folder / "line.toml", broker, mqtt={"ca_file": str(ours.pem)})
        )
    assert code == 1
    for check in ("tls broker", "broker"):
        assert found[check]["level"] == "FAIL"
        assert "expired" in found[check]["found"]
        assert "renew the broker's certificate" in found[check]["remedy"]


def test_a_key_that_is_missing(broker: Broker, folder: Path) -> None:
    ours = Authority(folder / "ours", "our-ca")
    own = ours.issue("own")
    own.key.unlink()
    mqtt = {"ca_file": str(ours.pem), "cert_file": str(own.cert), "key_file": str(own.key)}
    code, found = findings(write_settings(folder / "line.toml", broker, mqtt=mqtt))
    assert code == 1
    assert str(own.key) in found["tls"]["found"]


def test_a_camera_of_another_size_and_a_covered_lens(broker: Broker, folder: Path) -> None:
    config = write_settings(folder / "line.toml", broker)
    write_image(folder / "images" / "0.png", DARK, size=(40, 30))
    code, found = findings(config)
    assert code == 1
    assert "40x30" in found["camera"]["found"]
    assert "32x32" in found["camera"]["found"]
    write_image(folder / "images" / "0.png", 0)
    code, found = findings(config)
    assert (code, found["camera"]["level"]) == (0, "warn")
    assert "black_frame" in found["camera"]["found"]


def test_places_port_and_recipes(broker: Broker, folder: Path) -> None:
    (folder / "file").write_text("in the way")
    config = folder / "line.toml"
    with socket.create_server((HOST, 0)) as taken:
        write_settings(
            config,
            broker,
            outbox={"path": "file/outbox.sqlite"},
            evidence={"path": "pictures", "max_mb": 1e7},
            metrics={"port": taken.getsockname()[1]},
            runtime={"cpus": [max(os.sched_getaffinity(0)) + 1]},
        )
        with config.open("a") as text:
            text.write('[recipes.blue]\nbundle = "missing"\n')
        code, found = findings(config)
    assert code == 1
    levels = {name: found[name]["level"] for name in ("outbox", "evidence", "metrics", "cpus")}
    assert levels == {"outbox": "FAIL", "evidence": "warn", "metrics": "warn", "cpus": "FAIL"}
    assert "is no folder" in found["outbox"]["found"]
    assert found["recipe blue"]["level"] == "FAIL"
    assert str(folder / "missing") in found["recipe blue"]["found"]
    assert found["bundle"]["level"] == "ok"
    assert all(found[name]["remedy"] for name in (*levels, "recipe blue"))


def test_a_camera_that_is_not_there(broker: Broker, folder: Path) -> None:
    camera = {"kind": "v4l2", "uri": str(folder / "video9")}
    code, found = findings(write_settings(folder / "line.toml", broker, camera=camera))
    assert code == 1
    assert found["device"]["level"] == found["camera"]["level"] == "FAIL"
    assert str(folder / "video9") in found["device"]["found"]


def golden_off(bundle: Path) -> None:
    golden = bundle / "golden" / "golden.json"
    golden.write_text(golden.read_text().replace('"score": 0.0', '"score": 0.3'))
    describe_again(bundle)


def other_engine(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "backend": "tensorrt"}))
    seal(bundle)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(golden_off, "golden image"), (flip_byte, "was changed"), (other_engine, "TensorRT")],
)
def test_a_bundle_that_cannot_serve(broker: Broker, folder: Path, spoil: Any, word: str) -> None:
    spoil(folder / "bundle")
    code, found = findings(write_settings(folder / "line.toml", broker))
    assert (code, found["bundle"]["level"]) == (1, "FAIL")
    assert word in found["bundle"]["found"]
    assert found["bundle"]["remedy"]


def test_a_disk_without_room(broker: Broker, folder: Path) -> None:
    """In the folder that it is asked in, and where the outbox is to be."""
    with small_disk(folder / "small", "2m") as disk:
        config = write_settings(
            folder / "line.toml", broker, outbox={"path": str(disk / "o.sqlite")}
        )
        done = cli("doctor", "--config", config, "--json", cwd=disk)
    found = {check["check"]: check for check in done.json["checks"]}
    assert done.code == 1
    assert (found["disk"]["level"], found["outbox"]["level"]) == ("FAIL", "warn")
    assert str(disk) in found["disk"]["found"]
    assert "free some space" in found["disk"]["remedy"]
    assert "free some space" in found["outbox"]["remedy"]


@pytest.mark.parametrize(("synced", "level"), [(True, "ok"), (False, "note"), (None, "note")])
def test_a_clock(synced: bool | None, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says is given: nobody sets this machine's clock for a test."""
    monkeypatch.setattr(machine, "read_clock_state", lambda: ClockState(synced, 0.0))
    (clock,) = [finding for finding in machine.check_machine() if finding.check == "clock"]
    assert clock.level == level
    assert ("chrony" in clock.remedy) is (synced is False)


def test_permissions_are_those_of_who_asks(broker: Broker, folder: Path) -> None:
    """root may do anything, so it is asked as nobody."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can ask as somebody else")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*nobody, *COMMAND, "--help"], check=False, capture_output=True).returncode:
        pytest.skip("nobody cannot run this Python")
    with tempfile.TemporaryDirectory() as public:
        place = Path(shutil.copytree(folder, Path(public) / "line"))
        for made in (Path(public), place):
            made.chmod(0o755)
        (place / "video9").touch(mode=0o660)
        (place / "password").write_text("secret")
        (place / "password").chmod(0o600)
        config = write_settings(
            place / "line.toml",
            broker,
            camera={"kind": "v4l2", "uri": str(place / "video9")},
            outbox={"path": str(place / "outbox.sqlite")},
            mqtt={"username": "press", "password_file": "password"},
            runtime={"realtime_priority": 10},
        )
        done = subprocess.run(
            [*nobody, *COMMAND, "doctor", "--config", str(config), "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=place,
            env={**os.environ, "HOME": public},
        )
    found = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert (
        found["outbox"]["level"] == found["device"]["level"] == found["broker"]["level"] == "FAIL"
    )
    assert f"nobody cannot write to {place}" in found["outbox"]["found"]
    assert "chown" in found["outbox"]["remedy"]
    assert "may not open" in found["device"]["found"]
    assert "SupplementaryGroups=root" in found["device"]["remedy"]
    assert "password_file" in found["broker"]["found"]
    assert found["broker"]["remedy"] == "make it readable for the service"
    assert found["realtime"]["level"] == "warn"
    assert "LimitRTPRIO=10" in found["realtime"]["remedy"]
