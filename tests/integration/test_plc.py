"""The PLC simulator as a process, a real mosquitto, and a scripted daemon for its peer."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import fake_daemon

from metal_edge.demo.broker import LocalBroker
from metal_edge.demo.plc import main

ROOT = "metal/v1/enterprise/site/area/line/station"
PATIENCE_S = 30.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.01)
    return value


class Line:
    """A broker, daemons and a PLC in one folder; everything is ended with the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.broker = stack.enter_context(LocalBroker())
        self.log = folder / "gate.jsonl"

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        out = self.stack.enter_context((self.folder / f"{name}.out").open("wb"))
        err = self.stack.enter_context((self.folder / f"{name}.err").open("wb"))
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err)
        self.stack.callback(end, process)
        return process

    def daemon(
        self, script: dict[int, str] | dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        script_file = self.folder / "script.json"
        script_file.write_text(json.dumps(script or {}))
        return self.start(
            "daemon", str(fake_daemon.__file__), str(self.broker.port), ROOT, str(script_file)
        )

    def plc(self, **options: Any) -> subprocess.Popen[bytes]:
        values = {
            "port": self.broker.port,
            "root": ROOT,
            "log": self.log,
            "heartbeat_ms": 300,  # the peer beats at 100 ms: spare time on a busy machine
            "start_timeout": 20,
            "stop_after_s": "never",  # a test of its own stops the line
            "stop_after_rejects": "never",
            "dwell_ms": "any",  # the peer has no camera
        } | options
        words = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
        return self.start("plc", "-m", "metal_edge.demo.plc", *words, "--progress-json")

    def records(self) -> list[dict[str, Any]]:
        """The gate log's complete lines so far."""
        return json_lines(self.log) if self.log.exists() else []

    def said(self, name: str = "plc") -> list[dict[str, Any]]:
        return json_lines(self.folder / f"{name}.out")

    def errors(self) -> str:
        return (self.folder / "plc.err").read_text()


def json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def states(line: Line) -> list[str]:
    """What the line did, in order."""
    return [s["state"] for s in line.said() if s["event"] == "line"]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(tmp_path, stack)


def test_every_kind_of_answer_and_its_cause(line: Line) -> None:
    expected = {
        "pass": "pass_verdict",
        "reject": "reject_verdict",
        "unknown": "unknown_verdict",
        "silent": "no_decision",
        "late": "late_decision",
        "wrong part": "mismatched_id",
        "wrong trigger": "mismatched_id",
        "wrong session": "mismatched_id",
        "twice": "duplicate_decision",
        "contradictory": "contradictory_decisions",
        "not json": "malformed_decision",
        "nan": "malformed_decision",
        "no score": "malformed_decision",
        "above threshold": "malformed_decision",
        "giant": "malformed_decision",
        "picture before the part": "late_exposure",
        "picture without a time": "late_exposure",
        "retained": "pass_verdict",  # a live copy of a retained message is not a replay
    }
    script = dict(enumerate(expected))
    line.daemon(script)
    plc = line.plc(parts=len(script), period_ms=650, gate_delay_ms=600, dwell_ms=650)
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    records = line.records()
    assert [r["part_id"] for r in records] == [f"P-{k:06d}" for k in script]
    assert {script[k]: r["cause"] for k, r in enumerate(records)} == expected
    for record in records:
        proper = record["cause"] == "pass_verdict"
        assert (record["gate"] == "pass") is proper
    passed, late = records[0], records[4]
    assert passed["verdict"] == "pass"
    assert passed["score"] < passed["threshold"]
    assert passed["frame_id"] == "frame-0"
    assert 0 < passed["latency_ms"] <= passed["latency_from_trigger_ms"] + 1
    assert passed["latency_from_trigger_ms"] + passed["margin_ms"] == pytest.approx(600, abs=300)
    arrival = passed["decision_arrival_utc_ns"] - passed["t_trigger_utc_ns"]
    assert arrival / 1e6 == pytest.approx(passed["latency_from_trigger_ms"], abs=5)
    assert late["margin_ms"] < 0
    summary = line.said()[-1]
    assert (summary["event"], summary["logged"], summary["pass"]) == ("summary", len(script), 2)
    assert summary["decisions_after_gate"] >= 1
    assert summary["triggers_refused"] == 1


def test_triggers_carry_what_the_daemon_needs_and_do_not_drift(line: Line) -> None:
    ids = [f"lot7.{k}" for k in range(30)]
    id_file = line.folder / "ids.txt"
    id_file.write_text("\n".join(ids) + "\n\n")
    line.daemon()
    plc = line.plc(part_ids=id_file, first_index=5, parts=20, period_ms=100, gate_delay_ms=800)
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    records = line.records()
    assert [r["part_id"] for r in records] == ids[5:25]
    assert {r["cause"] for r in records} == {"pass_verdict"}
    times = [r["t_trigger_utc_ns"] / 1e6 for r in records]
    lags = [t - times[0] - 100 * k for k, t in enumerate(times)]
    assert abs(lags[-1]) < 90, f"the clock drifts: {lags}"
    heard = line.said("daemon")
    assert [h["command"]["part_id"] for h in heard] == ids[5:25]
    for one in heard:
        assert set(one["command"]) == {"trigger_id", "part_id", "deadline_ms"}
        assert 0 < one["command"]["deadline_ms"] < 800
        assert (one["qos"], one["retain"], one["expiry"]) == (1, False, 10)
        assert one["correlation"] == one["command"]["trigger_id"]
        assert one["response_topic"].startswith(f"{ROOT}/reply/")
    assert len({h["command"]["trigger_id"] for h in heard}) == 20
    gates = [s for s in line.said() if s["event"] == "gate"]
    assert [g["done"] for g in gates] == list(range(1, 21))


def test_kill_9_of_the_daemon_rejects_until_a_new_session(line: Line) -> None:
    first = line.daemon()
    plc = line.plc(parts=60, period_ms=150, gate_delay_ms=500)
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()), "a first pass")
    killed_utc_ns = time.time_ns()
    first.send_signal(signal.SIGKILL)
    wait_for(lambda: line.records()[-1]["t_trigger_utc_ns"] > killed_utc_ns, "a part after it")
    seen = len(line.records())
    second = line.daemon()
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()[seen:]), "the new session")
    assert second.poll() is None
    plc.send_signal(signal.SIGTERM)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    between = [r for r in line.records()[:seen] if r["t_trigger_utc_ns"] > killed_utc_ns]
    assert {(r["gate"], r["cause"]) for r in between} == {("reject", "daemon_offline")}
    assert line.said()[-1]["triggers_undelivered"] >= 1


def test_a_daemon_that_hangs_is_noticed_by_its_heartbeat(line: Line) -> None:
    daemon = line.daemon()
    plc = line.plc(parts=100, period_ms=150, gate_delay_ms=500)
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()), "a first pass")
    daemon.send_signal(signal.SIGSTOP)  # TCP stays up, so no last will yet
    wait_for(lambda: line.records()[-1]["cause"] == "no_heartbeat", "the heartbeat to run out")
    seen = len(line.records())
    daemon.send_signal(signal.SIGCONT)
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()[seen:]), "re-arming")
    plc.send_signal(signal.SIGINT)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    summary = line.said()[-1]
    assert summary["stopped_by"] == "SIGINT"
    assert summary["logged"] == len(line.records())


def test_an_unhealthy_daemon_passes_nothing(line: Line) -> None:
    line.daemon({3: "unhealthy"})
    plc = line.plc(parts=6, period_ms=650, gate_delay_ms=600)
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    causes = [r["cause"] for r in line.records()]
    assert causes == ["pass_verdict"] * 3 + ["daemon_unhealthy"] * 3


def test_a_lost_broker_rejects_everything_and_every_part_is_logged(line: Line) -> None:
    line.daemon()
    plc = line.plc(parts=20, period_ms=150, gate_delay_ms=500, late_window_ms=100)
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()), "a first pass")
    line.broker.process.send_signal(signal.SIGKILL)
    killed_utc_ns = time.time_ns()
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    records = line.records()
    assert len(records) == 20
    after = [r for r in records if r["t_trigger_utc_ns"] > killed_utc_ns]
    assert {r["cause"] for r in after} == {"broker_lost"}
    assert line.said()[-1]["triggers_unsent"] >= 1


def test_sigterm_leaves_whole_lines_and_a_summary(line: Line) -> None:
    line.daemon()
    plc = line.plc(parts=1000, period_ms=20, gate_delay_ms=300)
    wait_for(lambda: len(line.records()) >= 20, "20 lines")
    plc.send_signal(signal.SIGTERM)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    assert line.log.read_bytes().endswith(b"\n")
    summary = line.said()[-1]
    assert (summary["stopped_by"], summary["logged"]) == ("SIGTERM", len(line.records()))
    assert line.errors() == ""


def test_a_record_still_waiting_for_a_late_decision_is_logged_at_the_end(line: Line) -> None:
    line.daemon({0: "silent"})
    plc = line.plc(parts=1000, period_ms=20, gate_delay_ms=300, late_window_ms=60_000)
    wait_for(lambda: len(line.said("daemon")) >= 30, "30 triggers: the first part is gone")
    assert line.records() == []
    plc.send_signal(signal.SIGTERM)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    causes = [r["cause"] for r in line.records()]
    assert causes[0] == "no_decision"
    assert set(causes[1:]) == {"pass_verdict"}


def test_triggers_of_an_outage_are_not_sent_after_it(line: Line) -> None:
    line.daemon()
    plc = line.plc(parts=1000, period_ms=100, gate_delay_ms=500, late_window_ms=0)
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()), "a first pass")
    restart = [str(word) for word in line.broker.process.args]
    line.broker.process.kill()
    line.broker.process.wait()
    killed_utc_ns = time.time_ns()
    wait_for(lambda: line.records()[-1]["t_trigger_utc_ns"] > killed_utc_ns, "a part without")
    back_utc_ns = time.time_ns()
    line.stack.callback(end, subprocess.Popen(restart, stderr=subprocess.DEVNULL))
    wait_for(lambda: listens(line.broker.port), "the broker to be back")
    line.daemon()
    seen = len(line.records())
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()[seen:]), "passes again")
    plc.send_signal(signal.SIGTERM)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    heard = {h["command"]["trigger_id"] for h in line.said("daemon")}
    outage = [r for r in line.records() if killed_utc_ns < r["t_trigger_utc_ns"] < back_utc_ns]
    assert outage
    assert {r["cause"] for r in outage} == {"broker_lost"}
    assert not heard & {r["trigger_id"] for r in outage}


def test_rejects_in_a_row_stop_the_line_until_the_operator_acknowledges(line: Line) -> None:
    """The first six are bad: the line stops at the third, and what is on the belt is lost."""
    line.daemon(dict.fromkeys(range(6), "reject"))
    plc = line.plc(parts=10, period_ms=100, gate_delay_ms=450, stop_after_rejects=3)
    stopped = wait_for(lambda: [s for s in line.said() if s["event"] == "line"], "the stop")[0]
    assert (stopped["state"], stopped["why"]) == ("stopped", "K rejects in a row")
    heard = len(line.said("daemon"))
    wait_for(lambda: len(line.records()) == heard, "what was on the belt")
    on_belt = len(line.said("daemon"))
    plc.send_signal(signal.SIGUSR1)
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    records = line.records()
    assert heard == on_belt < 10, "a stopped line places no parts"
    assert {r["gate"] for r in records[:on_belt]} == {"reject"}
    assert {r["cause"] for r in records[3:on_belt]} == {"line_stopped"}
    assert {r["gate"] for r in records[on_belt:]} == {"pass"}
    assert len(records) == 10
    assert line.said()[-1]["stops"] == 1


def test_a_dead_daemon_stops_the_line_and_golden_parts_let_only_a_right_one_in(
    line: Line,
) -> None:
    """The second daemon passes the bad golden part; the third judges both rightly."""
    first = line.daemon()
    plc = line.plc(
        parts=100,
        period_ms=100,
        gate_delay_ms=450,
        stop_after_s=0.3,
        golden_good="G-good",
        golden_bad="G-bad",
    )
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()), "a first pass")
    first.kill()
    wait_for(lambda: states(line) == ["stopped"], "the stop")
    second = line.daemon()
    wait_for(lambda: states(line) == ["stopped", "checking", "stopped"], "a failed check")
    second.kill()
    triggers = len([s for s in line.said() if s["event"] == "golden"])
    line.daemon({"G-bad": "reject"})
    wait_for(lambda: states(line)[-2:] == ["checking", "running"], "a check that went well")
    seen = len(line.records())
    wait_for(lambda: any(r["gate"] == "pass" for r in line.records()[seen:]), "a pass")
    plc.send_signal(signal.SIGTERM)
    assert plc.wait(PATIENCE_S) == 130, line.errors()
    golden = [r for r in line.records() if r["golden"]]
    assert [r["part_id"] for r in golden] == ["G-good", "G-bad"] * 2
    assert triggers == 2
    assert {r["gate"] for r in golden} == {"reject"}, "golden parts are no product"
    assert [r["cause"] for r in golden] == ["pass_verdict"] * 3 + ["reject_verdict"]


def test_each_heartbeat_that_counts_is_echoed(line: Line) -> None:
    heard: list[dict[str, Any]] = []
    client = fake_daemon.connect(line.broker.port)
    client.on_message = lambda _c, _d, message: heard.append(json.loads(message.payload))
    client.subscribe(f"{ROOT}/echo")
    line.daemon({2: "unhealthy"})
    plc = line.plc(parts=8, period_ms=300, gate_delay_ms=250)
    assert plc.wait(PATIENCE_S) == 0, line.errors()
    client.disconnect()
    client.loop_stop()
    numbers = [echo["seq"] for echo in heard]
    assert len(numbers) > 10
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "unhealthy ones too"
    assert {echo["schema"] for echo in heard} == {1}
    decisions = [echo["decision_seq"] for echo in heard]
    assert (decisions[0], max(decisions)) == (0, 8), "and how many decisions were heard"
    assert decisions == sorted(decisions)


def test_without_a_daemon_it_gives_up_in_one_line(line: Line) -> None:
    plc = line.plc(parts=1, start_timeout=0.5)
    assert plc.wait(PATIENCE_S) == 69
    assert line.errors().count("\n") == 1
    assert "no retained state" in line.errors()


def test_a_stale_retained_birth_is_no_daemon(line: Line) -> None:
    """Left behind by a daemon whose last will never came: the broker lost it in a crash."""
    client = fake_daemon.connect(line.broker.port)
    for name, fields in (
        ("state", {"status": "online"}),
        ("heartbeat", {"seq": 1, "healthy": True}),
    ):
        text = json.dumps({"session_id": "S-gone", **fields})
        client.publish(f"{ROOT}/{name}", text, qos=1, retain=True).wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()
    plc = line.plc(parts=1, start_timeout=0.5)
    assert plc.wait(PATIENCE_S) == 69
    assert "no_heartbeat" in line.errors()
    assert line.records() == []


def test_without_a_broker_it_says_so(line: Line) -> None:
    plc = line.plc(parts=1, port=9)  # the discard service, which nobody runs
    assert plc.wait(PATIENCE_S) == 69
    assert "no MQTT broker at 127.0.0.1:9" in line.errors()
    assert line.errors().count("\n") == 1


def test_a_full_disk_ends_the_run_with_a_reason(line: Line) -> None:
    line.daemon()
    plc = line.plc(parts=3, period_ms=50, gate_delay_ms=300, log="/dev/full")
    assert plc.wait(PATIENCE_S) == 73
    assert "No space left" in line.errors()


@pytest.mark.parametrize(
    ("ids", "options", "code"),
    [
        ("A\nB\nA\n", [], 65),
        ("A\nB C\n", [], 65),
        ("A\n", ["--parts=2"], 65),
        ("A\nB\n", ["--first-index=2"], 65),
        ("A\n" + "x" * 65, [], 65),
        (None, ["--part-ids=/dev/null/ids"], 66),
        (None, [], 78),
        (None, ["--parts=0"], 78),
        (None, ["--parts=1", "--period-ms=0"], 78),
        (None, ["--parts=1", "--dwell-ms=0"], 78),
        (None, ["--parts=1", "--dwell-ms=long"], 78),
        (None, ["--parts=1", "--stop-after-s=soon"], 78),
        (None, ["--parts=1", "--stop-after-s=nan"], 78),
        (None, ["--parts=1", "--stop-after-rejects=0"], 78),
        (None, ["--parts=1", "--golden-good=G"], 78),
        (None, ["--parts=1", "--golden-good=G", "--golden-bad=G"], 78),
        (None, ["--parts=1", "--golden-good=G", "--golden-bad=a b"], 78),
        (None, ["--parts=1", "--gate-delay-ms=nan"], 78),
        (None, ["--parts=1", "--log=/dev/null/gate.jsonl"], 73),
    ],
)
def test_bad_input_is_named(
    ids: str | None,
    options: list[str],
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--root={ROOT}", f"--log={tmp_path / 'gate.jsonl'}", "--port=9"]
    if ids is not None:
        (tmp_path / "ids.txt").write_text(ids)
        arguments.append(f"--part-ids={tmp_path / 'ids.txt'}")
    assert main([*arguments, *options]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
