"""A line that cannot be armed says why in one line and ends with the right exit code."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.broker import Broker, Listener, free_port, wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import build_bundle, seal

if TYPE_CHECKING:
    from conftest import StartDaemon


def failure(daemon: Daemon) -> tuple[int, str]:
    """Exit code, and the one line that is meant for a person."""
    code = daemon.exit_code()
    lines = [row for row in daemon.log.splitlines() if not row.startswith(("INFO", "WARNING"))]
    assert len(lines) == 1, daemon.log
    assert lines[0].startswith("error: ")
    return code, lines[0]


def test_no_broker(start: StartDaemon) -> None:
    port = free_port()
    code, text = failure(start(mqtt={"port": port}))
    assert code == 69
    assert f"127.0.0.1:{port}" in text
    assert "mqtt.port" in text


def test_a_port_that_does_not_speak_mqtt(start: StartDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, text = failure(start(mqtt={"port": port, "connect_timeout_s": 0.5}))
    assert code == 69
    assert f"127.0.0.1:{port}" in text


@pytest.mark.parametrize(
    "name", ["model.onnx", "thresholds.json", "golden/000.png", "manifest.json"]
)
def test_one_changed_byte_in_the_bundle(start: StartDaemon, line: Path, name: str) -> None:
    file = line / "bundle" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, text = failure(start())
    assert code == 65
    assert name in text


def test_golden_scores_that_do_not_come_out(start: StartDaemon, line: Path) -> None:
    """The files are intact, but the model answers something else."""
    bundle = build_bundle(line / "other")
    golden = bundle / "golden" / "golden.json"
    content = json.loads(golden.read_text())
    content["images"][0]["score"] = 0.25
    golden.write_text(json.dumps(content))
    manifest = bundle / "manifest.json"
    fields = json.loads(manifest.read_text())
    from metal_edge.bundle import sha256_of

    fields["files"]["golden/golden.json"] = {
        "size": golden.stat().st_size,
        "sha256": sha256_of(golden),
    }
    manifest.write_text(json.dumps(fields))
    seal(bundle)
    code, text = failure(start(bundle="other"))
    assert code == 65
    assert "golden/000.png" in text


def test_a_typing_error_in_the_settings(start: StartDaemon) -> None:
    code, text = failure(start(camera={"timout_s": 1.0}))
    assert code == 78
    assert "camera.timout_s" in text
    assert "did you mean 'timeout_s'" in text


def test_an_unknown_camera(start: StartDaemon) -> None:
    code, text = failure(start(camera={"kind": "webcam"}))
    assert code == 78
    for kind in ("folder", "video", "v4l2", "rtsp"):
        assert kind in text


@pytest.mark.parametrize("kind", ["folder", "video", "v4l2", "rtsp"])
def test_a_camera_that_is_not_there(start: StartDaemon, kind: str) -> None:
    uri = f"rtsp://admin:secret@127.0.0.1:{free_port()}/x" if kind == "rtsp" else "/nowhere/cam"
    daemon = start(camera={"kind": kind, "uri": uri})
    assert daemon.exit_code() == 69
    last = daemon.log.splitlines()[-1]
    assert last.startswith("error: ")
    assert "camera.uri" in last
    assert "secret" not in daemon.log


def with_password(folder: Path) -> Broker:
    folder.mkdir()
    users = folder / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), "edge", "right"], check=True)
    users.chmod(0o600)
    return Broker(folder, f"allow_anonymous false\npassword_file {users}")


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="no mosquitto_passwd")
def test_password_from_a_file(line: Path, tmp_path: Path) -> None:
    (line / "right").write_text("right\n")
    (line / "wrong").write_text("wrong\n")
    with with_password(tmp_path / "private") as private:
        user = {"username": "edge", "password_file": "wrong"}
        with Daemon(write_settings(line / "a.toml", private, mqtt=user)) as daemon:
            code, text = failure(daemon)
            assert code == 69
            assert f":{private.port}" in text
            assert "password_file" in text
        user = {"username": "edge", "password_file": "right"}
        with (
            Listener(private, username="edge", password="right") as listener,  # noqa: S106
            Daemon(write_settings(line / "b.toml", private, mqtt=user)) as daemon,
        ):
            daemon.armed(listener)
            config = listener.wait("config").data
            assert "right" not in json.dumps(config) + daemon.log


def make_certificates(folder: Path) -> None:
    """A certificate authority and a server certificate for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca")
    openssl(*new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=broker")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    sign = ("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key")
    openssl(*sign, "-CAcreateserial", "-extfile", "names", "-out", "server.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_tls(line: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    make_certificates(folder)
    certificates = f"certfile {folder / 'server.pem'}\nkeyfile {folder / 'server.key'}"
    good = {"ca_file": str(folder / "ca.pem")}
    with Broker(folder, f"allow_anonymous true\n{certificates}") as secure:
        with Daemon(write_settings(line / "tls.toml", secure, mqtt=good)) as daemon:
            wait_until(lambda: "is armed" in daemon.log, "a line armed over TLS")
            assert daemon.stop() == 0
        (folder / "junk.pem").write_text("not a certificate")
        for name in ("junk.pem", "missing.pem"):
            bad = {"ca_file": str(folder / name)}
            with Daemon(write_settings(line / "bad.toml", secure, mqtt=bad)) as daemon:
                code, text = failure(daemon)
                assert code == 69
                assert name in text
                assert f":{secure.port}" in text
        other = {"ca_file": str(folder / "server.pem")}
        with Daemon(write_settings(line / "other.toml", secure, mqtt=other)) as daemon:
            code, text = failure(daemon)
            assert code == 69
            assert "certificate" in text


def test_sighup_is_ignored_and_sigint_stops(start: StartDaemon, listener: Listener) -> None:
    daemon = start()
    daemon.armed(listener)
    daemon.process.send_signal(signal.SIGHUP)
    listener.trigger(STATION, "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.exit_code() == 0
