"""TLS and passwords with a real broker: what works, and what each failure tells a person."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.broker import HOST, Broker, find_mosquitto, free_port, wait_until
from support.certificates import Authority
from support.daemon_process import STATION, Daemon, write_settings
from support.wire import Wire

from metal_edge.daemon.mqtt.connection import Connection, Message
from metal_edge.errors import UnavailableError
from metal_edge.settings import MqttSettings

pytestmark = [
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

ANYBODY = "allow_anonymous true\n"


def conversation(broker: Broker, **settings: Any) -> Connection:
    mqtt = MqttSettings(host=broker.host, port=broker.port, connect_timeout_s=3, **settings)
    will = Message("will", b"", 1)
    return Connection(mqtt, "tls-test", will, ("anything",), lambda *unused: None)


def complaint(broker: Broker, **settings: Any) -> str:
    """What the error says, with what to do."""
    connection = conversation(broker, **settings)
    with pytest.raises(UnavailableError) as caught:
        connection.open()
    assert not connection.alive
    text = f"{caught.value.what} | {caught.value.remedy}"
    assert f"{HOST}:{broker.port}" in text
    return text


def works(broker: Broker, **settings: Any) -> None:
    connection = conversation(broker, **settings)
    connection.open()
    assert connection.publish(Message("x", b"1", 1)) is not None
    wait_until(lambda: connection.acks, "a PUBACK")
    connection.disconnect()


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours", "our-ca")


@pytest.fixture
def foreign(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "foreign", "foreign-ca")


@contextmanager
def secure(ours: Authority, folder: Path, extra: str = "", **names: Any) -> Iterator[Broker]:
    """A broker whose certificate is as `names` say."""
    server = ours.issue("server", **names)
    tls = f"certfile {server.cert}\nkeyfile {server.key}\n"
    with Broker(folder, ANYBODY + tls + extra) as broker:
        yield broker


def test_a_broker_that_we_trust(ours: Authority, foreign: Authority, tmp_path: Path) -> None:
    with secure(ours, tmp_path) as broker:
        works(broker, ca_file=ours.pem)
        text = complaint(broker, ca_file=foreign.pem)
        assert "verify failed" in text
        assert "mqtt.ca_file must hold the authority" in text
        text = complaint(broker)
        assert "speak TLS" in text


def test_a_broker_whose_certificate_has_expired(ours: Authority, tmp_path: Path) -> None:
    with secure(ours, tmp_path, days=-1) as broker:
        text = complaint(broker, ca_file=ours.pem)
    assert "expired" in text
    assert "renew the broker's certificate" in text


def test_a_broker_with_another_name(ours: Authority, tmp_path: Path) -> None:
    with secure(ours, tmp_path, host="broker.example") as broker:
        text = complaint(broker, ca_file=ours.pem)
    assert "mqtt.host must be a name in its certificate" in text


def test_a_port_without_tls(ours: Authority, tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        text = complaint(broker, ca_file=ours.pem)
    assert "mqtt.port" in text


def test_client_certificates(ours: Authority, foreign: Authority, tmp_path: Path) -> None:
    demand = f"require_certificate true\ncafile {ours.pem}\n"
    with secure(ours, tmp_path, demand) as broker:

        def files(authority: Authority, **names: Any) -> dict[str, Path]:
            own = authority.issue("press1", **names)
            return {"ca_file": ours.pem, "cert_file": own.cert, "key_file": own.key}

        works(broker, **files(ours))
        text = complaint(broker, ca_file=ours.pem)
        assert "client certificate" in text
        assert "set mqtt.cert_file" in text
        for refused in (files(foreign), files(ours, days=-1)):
            text = complaint(broker, **refused)
            assert "refuses the client certificate" in text
        text = complaint(broker, **files(ours, passphrase="secret words"))  # noqa: S106
        assert "has a passphrase" in text
        swapped = files(ours)
        other = foreign.issue("other")
        text = complaint(broker, **{**swapped, "key_file": other.key})
        assert "check mqtt.ca_file, mqtt.cert_file and mqtt.key_file" in text
        assert str(other.key) in text


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="no mosquitto_passwd")
def test_a_wrong_password_or_none(tmp_path: Path) -> None:
    users, right, wrong = (tmp_path / name for name in ("users", "right", "wrong"))
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), "edge", "right"], check=True)
    users.chmod(0o600)
    right.write_text("right\n")
    wrong.write_text("wrong\n")
    with Broker(tmp_path, f"allow_anonymous false\npassword_file {users}") as broker:
        works(broker, username="edge", password_file=right)
        for settings in ({"username": "edge", "password_file": wrong}, {}):
            assert "check mqtt.username, mqtt.password_file" in complaint(broker, **settings)
        missing = tmp_path / "missing"
        user = tmp_path / "user"
        user.write_text("edge\n")
        works(broker, username_file=user, password_file=right)
        user.write_text("somebody\n")
        complaint(broker, username_file=user, password_file=right)
        for unreadable in (
            {"username": "edge", "password_file": missing},
            {"username_file": missing, "password_file": right},
        ):
            with pytest.raises(UnavailableError, match=f"mqtt.*_file {missing} cannot be read"):
                conversation(broker, **unreadable).open()


def test_no_broker_at_all(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.port = free_port()
    assert "that the broker runs" in complaint(broker)


def test_a_certificate_that_changes_while_the_line_runs(
    ours: Authority, foreign: Authority, tmp_path: Path, line: Path
) -> None:
    """Renewed, it is taken at once; from another authority, once that is trusted. No restart."""
    trusted = line / "trusted.pem"
    shutil.copy(ours.pem, trusted)
    server = ours.issue("server")
    tls = f"{ANYBODY}certfile {server.cert}\nkeyfile {server.key}\n"
    with Broker(tmp_path, tls) as broker:
        config = write_settings(line / "tls.toml", broker, mqtt={"ca_file": str(trusted)})
        with Daemon(config) as daemon:
            back = "connected to the broker again"
            wait_until(lambda: "is armed" in daemon.log, "a line armed over TLS")
            ours.issue("server")
            broker.kill()
            broker.start()
            wait_until(lambda: daemon.log.count(back) == 1, "the renewed certificate accepted")
            stranger = foreign.issue("server")
            shutil.copy(stranger.cert, server.cert)
            shutil.copy(stranger.key, server.key)
            broker.kill()
            broker.start()
            wait_until(lambda: "mqtt.ca_file must hold" in daemon.log, "loud refusal")
            wait_until(lambda: "degraded: broker" in daemon.log, "a degraded line")
            assert daemon.log.count(back) == 1
            trusted.write_bytes(ours.pem.read_bytes() + foreign.pem.read_bytes())
            wait_until(lambda: daemon.log.count(back) == 2, "the new authority accepted")
            with Wire(broker, f"{STATION}/state", ca=foreign.pem) as wire:
                wire.wait("state")
                wait_until(lambda: b"online" in wire.messages[-1].payload, "online")
            assert daemon.stop() == 0
