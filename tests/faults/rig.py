"""A whole line under fault: broker, daemon and PLC as processes, a camera that sees the truth, and
a recorder that hears everything. `Rig.finish` is the audit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rig_records import Audit, Run, Tail, age_s, passage
from scene_camera import is_bad
from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import build_bundle

from metal_edge.demo.witness import Exposure, Life, Passage, Statement, uninspected

HERE = Path(__file__).parent
PERIOD_MS, GATE_MS = 100, 500
NS = 1_000_000_000
EVENTS_S = 20.0  # for what waits in the outbox to come after the fault
SEQ = re.compile(r"reporter: seq=(\d+) ")  # the daemon's log line of a decision
ENTRY_POINT = "[metal_edge.cameras]\nscene = scene_camera:SceneCamera\n"


class Rig:
    """Args:
    folder: for everything that the run leaves.
    stack: ends the processes.
    broker: the line's own, not yet started; a plain one if None.
    package: folder to import metal_edge from instead of this checkout, for mutants.
    model: see `build_bundle` of tests/support/tiny_bundle.py.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *,
        broker: Broker | None = None,
        package: Path | None = None,
        model: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.stack = stack
        self._package = package
        build_bundle(folder / "bundle", **(model or {}))
        (folder / "control").write_text("")
        plugin = folder / "plugin" / "scene-1.0.dist-info"
        plugin.mkdir(parents=True)
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: scene\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text(ENTRY_POINT)
        if broker is None:
            (folder / "broker").mkdir()
            broker = Broker(folder / "broker")
        self.broker = stack.enter_context(broker)
        # At QoS 0 it never writes, so it reads to the last byte of a broker that was killed, and
        # the broker keeps nothing back for it.
        self.recorder = stack.enter_context(Listener(broker, retry_s=0.05, qos=0))
        self.config = folder / "line.toml"
        self.runs: list[Run] = []
        self._sees_parts = True
        self._plcs: list[subprocess.Popen[bytes]] = []
        self._gate, self._eye = Tail(folder / "gate.jsonl"), Tail(folder / "eye.jsonl")
        self._said = Tail(folder / "plc.out")
        self.daemon_prefix: tuple[str, ...] = ()
        self.daemon_environment: dict[str, str] = {}

    # --- the line ---

    def settings(self, **sections: Any) -> Path:
        """Writes line.toml; sections change what stands here."""
        scene = {name: str(self.folder / name) for name in ("control",)}
        scene |= {"eye": str(self.folder / "eye.jsonl"), "log": str(self.folder / "camera")}
        wanted: dict[str, Any] = {
            "bundle": str(self.folder / "bundle"),
            "camera": {"kind": "scene", "uri": "", "timeout_s": 0.4, "options": scene},
            "decision": {"deadline_ms": GATE_MS - 10},
            "outbox": {"path": str(self.folder / "outbox.sqlite")},
        }
        for name, value in sections.items():
            old = wanted.get(name)
            wanted[name] = {**old, **value} if isinstance(old, dict) else value
        self._sees_parts = wanted["camera"]["kind"] == "scene"
        return write_settings(self.config, self.broker, **wanted)

    def start_daemon(self) -> Daemon:
        daemon = Daemon(
            self.config,
            {**self._environment(), **self.daemon_environment},
            prefix=self.daemon_prefix,
            cwd=self.folder,
            log=f"daemon-{len(self.runs)}.stderr",
        )
        self.stack.enter_context(daemon)
        self.runs.append(Run(daemon, time.monotonic_ns()))
        return daemon

    @property
    def daemon(self) -> Daemon:
        return self.runs[-1].daemon

    def kill_daemon(self) -> int:
        """kill -9; gives the moment."""
        self.daemon.process.kill()
        self.daemon.process.wait()
        self.runs[-1].until_ns = time.monotonic_ns()
        return time.monotonic_ns()

    def start_plc(self, **options: Any) -> None:
        values = {
            "port": self.broker.port,
            "root": STATION,
            "parts": 1_000_000,
            "period_ms": PERIOD_MS,
            "gate_delay_ms": GATE_MS,
            "start_timeout": 60,
            "stop_after_s": "never",  # scenarios of their own stop the line
            "stop_after_rejects": "never",
            "photo_eye": self.folder / "eye.jsonl",
            "log": self.folder / "gate.jsonl",
        } | options
        words = [
            f"--{key.replace('_', '-')}" + ("" if value is None else f"={value}")
            for key, value in values.items()
        ]
        command = [sys.executable, "-m", "metal_edge.demo.plc", *words, "--progress-json"]
        with (self.folder / "plc.out").open("wb") as out, (self.folder / "plc.err").open("wb") as e:
            plc = subprocess.Popen(
                command, stdout=out, stderr=e, cwd=self.folder, env=self._environment()
            )
        self.stack.callback(lambda: (plc.kill(), plc.wait()))
        self._plcs.append(plc)

    def start(self, *, plc: dict[str, Any] | None = None, **sections: Any) -> None:
        """Settings, daemon, PLC; returns when parts pass."""
        self.settings(**sections)
        self.start_daemon()
        self.start_plc(**(plc or {}))
        self.wait_passes(3, "the line to run", 60)

    def acknowledge(self) -> None:
        """The operator's button."""
        self._plcs[-1].send_signal(signal.SIGUSR1)

    @contextmanager
    def plc_frozen(self) -> Iterator[None]:
        """SIGSTOP while the block lasts."""
        self._plcs[-1].send_signal(signal.SIGSTOP)
        yield
        self._plcs[-1].send_signal(signal.SIGCONT)

    def camera(self, fault: str) -> int:
        """Sets what is wrong with the camera ("" for nothing); gives the moment."""
        fresh = self.folder / "control.new"
        fresh.write_text(fault)
        fresh.replace(self.folder / "control")
        return time.monotonic_ns()

    def restart_broker(self) -> int:
        """Starts it again, and lets the recorder in before the daemon; gives the moment."""
        with self.daemon.frozen():
            self.broker.start()
            self.recorder.wait_subscribed()
        return time.monotonic_ns()

    # --- looking on ---

    def gate(self) -> list[dict[str, Any]]:
        """The gate log so far, each line with the part's times from the photo-eye."""
        eye = {line["trigger_id"]: line for line in self._eye.lines()}
        return [{**line, **eye[line["trigger_id"]]} for line in self._gate.lines()]

    def line_states(self) -> list[str]:
        """What the PLC's line did: stopped, checking, running."""
        return [line["state"] for line in self._said.lines() if line["event"] == "line"]

    def wait_line(self, state: str, timeout_s: float) -> None:
        """The PLC's line is in this state."""
        wait_until(lambda: self.line_states()[-1:] == [state], f"line {state}", timeout_s)

    def wait_armed(self, timeout_s: float = 15.0) -> None:
        """Five healthy heartbeats in a row: more than the PLC needs to arm."""

        def healthy() -> bool:
            last = self.recorder.all("heartbeat")[-5:]
            return all(h.data["healthy"] for h in last)

        wait_until(healthy, "healthy heartbeats", timeout_s)

    def wait_parts(self, count: int, timeout_s: float = 20.0) -> None:
        """So many more parts at the gate: the fault lasts while they come."""
        wanted = len(self._gate.lines()) + count
        wait_until(lambda: len(self._gate.lines()) >= wanted, f"{count} parts", timeout_s)

    def wait_passes(self, count: int, what: str, timeout_s: float) -> None:
        seen = len(self._gate.lines())

        def passes() -> bool:
            assert self._plcs[-1].poll() is None, (self.folder / "plc.err").read_text()
            run = self.runs[0]
            assert run.until_ns or run.daemon.process.poll() is None, run.daemon.log
            return sum(line["gate"] == "pass" for line in self._gate.lines()[seen:]) >= count

        wait_until(passes, what, timeout_s)

    def wait_causes(self, cause: str, count: int, since_ns: int, timeout_s: float = 15.0) -> None:
        """So many parts that came after `since_ns` and were rejected for `cause`."""
        wait_until(lambda: self.caused(cause, since_ns) >= count, f"{cause} at the gate", timeout_s)

    def caused(self, cause: str, since_ns: int) -> int:
        return sum(g["cause"] == cause and g["t_ns"] > since_ns for g in self.gate())

    def passes(self, since_ns: int) -> int:
        """Parts that came after `since_ns` and passed."""
        return sum(g["gate"] == "pass" and g["t_ns"] > since_ns for g in self.gate())

    def wait_reason(self, reason: str, timeout_s: float = 15.0) -> None:
        """A decision for this reason was heard."""
        self.recorder.wait("decision", lambda h: h.data["reason"] == reason, timeout_s)

    def wait_problem(self, problem: str, timeout_s: float = 15.0) -> None:
        """The daemon's state names a problem that begins so."""
        self.recorder.wait("state", lambda h: names(h.data, problem), timeout_s)

    def wait_online(self, since_ns: int, timeout_s: float = 15.0) -> None:
        """The daemon said after that moment that it has no problem."""
        self.recorder.wait(
            "state",
            lambda h: h.at * NS > since_ns and h.data["status"] == "online",
            timeout_s=timeout_s,
        )

    def wait_said(self, text: str, timeout_s: float = 10.0) -> None:
        """The daemon's log has this."""
        wait_until(lambda: text in self.daemon.log, f"{text!r} in the log", timeout_s)

    def first_ns(self, cause: str, since_ns: int) -> int:
        """When the first part after `since_ns` came that was rejected for `cause`."""
        times = (g["t_ns"] for g in self.gate() if g["cause"] == cause and g["t_ns"] > since_ns)
        return int(min(times))

    def recovery_s(self, since_ns: int, timeout_s: float, after_ns: int | None = None) -> float:
        """Waits for a part that passed, the first that came after `after_ns` (`since_ns` if not
        given), and says how long after `since_ns` that was.
        """
        after = since_ns if after_ns is None else after_ns

        def first() -> float | None:
            later = (g for g in self.gate() if g["t_ns"] > after and g["gate"] == "pass")
            part = next(later, None)
            return None if part is None else max((part["t_ns"] - since_ns) / NS, 1e-6)

        return float(wait_until(first, "a part to pass again", timeout_s))

    # --- the audit ---

    def finish(self) -> Audit:
        """Stops the conveyor, waits for the last events, and judges."""
        plc = self._plcs[-1]
        plc.send_signal(signal.SIGTERM)
        plc.wait(20)
        stopped_ns = time.monotonic_ns()
        self._wait_for_events()
        audit = self._audit(stopped_ns)
        (self.folder / "audit.json").write_text(json.dumps(audit.__dict__, default=str, indent=1))
        return audit

    def _wait_for_events(self) -> None:
        end = time.monotonic() + EVENTS_S
        while self.lost_events() and time.monotonic() < end:
            time.sleep(0.1)  # bounded by EVENTS_S; what is still missing then is lost

    def lost_events(self) -> list[str]:
        """Numbers that a session gave to a decision, by its log or on the wire, and of which no
        event was ever heard.
        """
        heard: dict[str, set[int]] = defaultdict(set)
        given: dict[str, int] = defaultdict(int)
        for session, run in self._sessions():
            given[session] = max(map(int, SEQ.findall(run.daemon.log)), default=0)
        for name in ("event", "decision"):
            for message in self.recorder.all(name):
                session, seq = message.data["session_id"], message.data["seq"]
                given[session] = max(given[session], seq)
                if name == "event":
                    heard[session].add(seq)
        return [
            f"{session[:8]}:{seq}"
            for session, last in given.items()
            for seq in range(1, last + 1)
            if seq not in heard[session]
        ]

    def _audit(self, stopped_ns: int) -> Audit:
        gate, words = self._gate.lines(), self._statements()
        outcomes = Counter(line["trigger_id"] for line in gate)
        logged = {line["trigger_id"]: line for line in gate}
        passages = [passage(eye, logged.get(eye["trigger_id"])) for eye in self._eye.lines()]
        broken = [f"{t}: {n} outcomes at the gate" for t, n in outcomes.items() if n != 1]
        broken += [
            f"{p.part_id}: no outcome at the gate"
            for p in passages
            if p.passed is None and p.gate_ns < stopped_ns - NS // 2
        ]
        exposures = self._exposures() if self._sees_parts else self._told_exposures(passages)
        verdicts: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for word in words:
            verdicts[word.trigger_id].add((word.session_id, word.verdict))
        broken += [f"{t}: several verdicts {v}" for t, v in verdicts.items() if len(v) > 1]
        decided = Counter(h.data["event_id"] for h in self.recorder.all("decision"))
        broken += [f"decision {e} heard {n} times" for e, n in decided.items() if n > 1]
        events = Counter(h.data["event_id"] for h in self.recorder.all("event"))
        return Audit(
            parts=len(gate),
            passed=sum(line["gate"] == "pass" for line in gate),
            uninspected=uninspected(passages, exposures, words, self._lives()),
            escapes=[
                p.part_id for p in passages if self._sees_parts and p.passed and is_bad(p.part_id)
            ],
            lost_events=self.lost_events(),
            repeated_events=sum(n - 1 for n in events.values()),
            stale_decisions=sum(age_s(h) > 1.5 for h in self.recorder.all("decision")),
            causes=dict(Counter(line["cause"] for line in gate)),
            broken_rules=broken,
        )

    def _statements(self) -> list[Statement]:
        keys = ("session_id", "trigger_id", "part_id", "verdict")
        return [
            Statement(**{key: heard.data[key] for key in keys}, frame_id=self._picture(heard.data))
            for name in ("decision", "event")
            for heard in self.recorder.all(name)
        ]

    def _exposures(self) -> list[Exposure]:
        return [
            Exposure(line["frame_id"], line["shows"], line["t_ns"])
            for path in (self.folder / "camera").glob("*.jsonl")
            for line in Tail(path).lines()
        ]

    def _told_exposures(self, passages: list[Passage]) -> list[Exposure]:
        """For a camera that keeps no record: the times that the daemon names, on this host's
        clock, and who stood there then by the photo-eye. Whether the picture is a good one only
        the scenario knows.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()
        found = []
        for heard in self.recorder.all("event"):
            if heard.data["t_exposure_ns"] is not None:
                t_ns = heard.data["t_exposure_ns"] - offset_ns
                before = [p.part_id for p in passages if p.t_ns <= t_ns]
                shown = before[-1] if before else None
                found.append(Exposure(self._picture(heard.data) or "", shown, t_ns))
        return found

    def _picture(self, decision: dict[str, Any]) -> str | None:
        """Its name; a real camera's numbers begin anew when it does, so the time goes with them."""
        name = decision["frame_id"]
        return name if self._sees_parts else f"{name} at {decision['t_exposure_ns']}"

    def _sessions(self) -> list[tuple[str, Run]]:
        """Which process each session was: the newest one running when its birth was sent.

        Not when it was heard: by then it may be dead and the next one running. One that died
        before its birth, of which only the will is heard, decided nothing.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()
        born: dict[str, int] = {}
        for heard in self.recorder.all("state"):
            if heard.data["status"] != "offline":
                born.setdefault(heard.data["session_id"], heard.data["t_publish_ns"] - offset_ns)
        return [
            (session, [r for r in self.runs if r.from_ns <= at_ns or r is self.runs[0]][-1])
            for session, at_ns in born.items()
        ]

    def _lives(self) -> list[Life]:
        return [Life(s, run.from_ns, run.until_ns) for s, run in self._sessions()]

    def _environment(self) -> dict[str, str]:
        paths = [str(self.folder / "plugin"), str(HERE), str(self._package or HERE.parents[1])]
        return {**os.environ, "PYTHONPATH": ":".join(paths)}


def names(state: dict[str, Any], problem: str) -> bool:
    """Whether a state is degraded by such a problem."""
    return state["status"] == "degraded" and any(p.startswith(problem) for p in state["problems"])
