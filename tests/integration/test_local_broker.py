"""The private broker: the real mosquitto, on loopback only, gone when its owner is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metal_edge.demo import broker as broker_module
from metal_edge.demo.broker import LocalBroker, find_mosquitto
from metal_edge.errors import UnavailableError

PATIENCE_S = 20.0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_until_closed(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while listens(port):
        assert time.monotonic() < deadline, f"port {port} still answers"
        time.sleep(0.02)


def test_it_listens_on_loopback_only_and_leaves_nothing_behind() -> None:
    with LocalBroker() as broker:
        assert listens(broker.port)
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
        bound = [row.split()[1] for row in rows if row.split()[3] == "0A"]  # LISTEN
        mine = [address for address in bound if int(address[-4:], 16) == broker.port]
        assert mine == [f"0100007F:{broker.port:04X}"]  # 127.0.0.1, in network byte order
        process, folder = broker.process, Path(str(broker.process.args[-1])).parent
        assert folder.is_dir()
    assert process.returncode == 0
    assert not folder.exists()
    assert not listens(broker.port)


def test_two_do_not_meet() -> None:
    with LocalBroker() as one, LocalBroker() as other:
        assert one.port != other.port


@pytest.mark.parametrize("stopped", [False, True])
def test_it_ends_with_an_exception_in_the_block_even_when_it_hangs(
    stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "STOP_TIMEOUT_S", 0.2)
    with pytest.raises(ZeroDivisionError), LocalBroker() as broker:
        process = broker.process
        if stopped:
            process.send_signal(19)  # SIGSTOP: SIGTERM stays pending
        raise ZeroDivisionError
    assert process.returncode == (-9 if stopped else 0)
    assert not listens(broker.port)


def test_it_dies_with_its_parent() -> None:
    code = (
        "import sys\n"
        "from metal_edge.demo.broker import LocalBroker\n"
        "with LocalBroker() as broker:\n"
        "    print(broker.port, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert listens(port)
        parent.kill()
    wait_until_closed(port)


def test_a_port_taken_in_the_meantime_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LocalBroker() as rival:  # a broker too: an answer alone would not tell them apart
        honest = broker_module._free_port
        offers = iter([rival.port, rival.port])
        monkeypatch.setattr(broker_module, "_free_port", lambda: next(offers, None) or honest())
        with LocalBroker() as broker:
            assert broker.port != rival.port
            assert listens(broker.port)


def test_a_port_that_is_always_taken_ends_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalBroker() as rival:
        monkeypatch.setattr(broker_module, "_free_port", lambda: rival.port)
        with pytest.raises(UnavailableError, match="no free port"):
            LocalBroker().__enter__()


def test_a_broker_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: bad weather' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UnavailableError, match=r"exited with 3 .*bad weather"):
        LocalBroker().__enter__()


def test_without_mosquitto_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Path(find_mosquitto()).parent == Path("/usr/sbin")  # not on everybody's PATH
    monkeypatch.setattr(broker_module, "SYSTEM_PROGRAMS", str(tmp_path))
    with pytest.raises(UnavailableError, match="apt-get install mosquitto"):
        find_mosquitto()
