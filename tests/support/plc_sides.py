"""The PLC's function block and the simulator's gate, told the same, one event after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metal_edge.demo.gate import Cause, Echo, GateSettings, RejectGate
from tools.st.evaluate import Program

SOURCE = Path(__file__).parents[2] / "plc" / "MetalEdge.st"
PROGRAM = Program(SOURCE)  # parsing takes a second
MS = 1_000_000
NUMBERS = {
    Cause.PASS_VERDICT: 1,
    Cause.REJECT_VERDICT: 2,
    Cause.UNKNOWN_VERDICT: 3,
    Cause.NO_DECISION: 4,
    Cause.LATE_DECISION: 5,
    Cause.MISMATCHED_ID: 6,
    Cause.DUPLICATE_DECISION: 7,
    Cause.CONTRADICTORY_DECISIONS: 7,
    Cause.MALFORMED_DECISION: 8,
    Cause.NO_HEARTBEAT: 9,
    Cause.DAEMON_UNHEALTHY: 10,
    Cause.DAEMON_OFFLINE: 11,
    Cause.SESSION_CHANGED: 12,
    Cause.BROKER_LOST: 13,
    Cause.LINE_STOPPED: 14,
    Cause.LATE_EXPOSURE: 16,
}
VERDICTS = {"unknown": 0, "reject": 1, "pass": 2}


class Both:
    """The simulator's gate and the function block, told the same."""

    def __init__(self, program: Program = PROGRAM) -> None:
        self.now = 1000
        self.gate = RejectGate(GateSettings(heartbeat_timeout_ns=600 * MS, rearm_heartbeats=3))
        self.block = program.instance("FB_MetalEdgeGate")
        self.seq = 0
        self.decision_seq = 0
        self.parts: dict[str, int] = {}
        self.passed = 0
        self.echoed: Echo | None = None

    def call(self, event: int, **inputs: Any) -> dict[str, Any]:
        self.block(Event=event, NowMs=self.now, **inputs)
        return self.block.values

    def agree(self) -> None:
        fault = self.gate.link_fault(self.now * MS)
        self.call(0)
        assert self.block.values["Fault"] == (NUMBERS[fault] if fault else 0)
        assert self.block.values["Armed"] == (fault is None)

    def trigger(
        self, number: int, part: int, travel: int, golden: bool, dwell: int | None = None
    ) -> None:
        trigger_id, part_id, gate = f"t{number}", f"p{part}", self.now + travel
        if trigger_id in self.parts:
            return  # the PLC counts its triggers: it never gives a number twice
        try:
            self.gate.on_trigger(
                trigger_id,
                part_id,
                self.now * MS,
                gate * MS,
                leaves_ns=None if dwell is None else (self.now + dwell) * MS,
                golden=golden,
            )
            new = True
        except ValueError:
            new = False
        leaves = -1 if dwell is None else self.now + dwell
        ids = {"TriggerId": trigger_id, "PartId": part_id}
        got = self.call(1, **ids, GateMs=gate, LeavesMs=leaves, Golden=golden)
        assert got["Refused"] is not new
        if new:
            self.parts[trigger_id] = gate

    def decision(
        self, ids: tuple[int, int], session: str, verdict: str, kind: str, age: int | None = 0
    ) -> None:
        number, part = ids
        self.decision_seq += 1
        score, threshold = (0.5, 1.0) if kind != "above" else (1.0, 1.0)
        payload: dict[str, Any] = {
            "schema": 1,
            "event_id": "e",
            "session_id": session,
            "seq": self.decision_seq,
            "trigger_id": f"t{number}",
            "part_id": f"p{part}",
            "verdict": verdict,
            "score": None if kind == "no score" else score,
            "threshold": threshold,
            "t_publish_ns": 10**18,
            "t_exposure_ns": None if age is None else 10**18 - age * MS,
        }
        readable, trigger_id, part_id = True, f"t{number}", f"p{part}"
        text = json.dumps(payload).encode()
        if kind == "garbage":
            text, readable, trigger_id, part_id = b"\xff", False, "", ""
        elif kind == "schema":
            text, readable = json.dumps({**payload, "schema": 2}).encode(), False
        self.gate.on_decision(text, self.now * MS, retained=kind == "retained")
        self.call(
            2,
            Readable=readable,
            Retained=kind == "retained",
            PartId=part_id,
            TriggerId=trigger_id,
            SessionId=session,
            Seq=self.decision_seq,
            Verdict=VERDICTS[verdict],
            Numbers=kind != "no score",
            Score=score,
            Threshold=threshold,
            AgeKnown=age is not None,
            AgeMs=age or 0,
        )

    def heartbeat(self, session: str, step: int, healthy: bool, kind: str) -> None:
        self.seq = max(0, self.seq + step)
        payload = {"session_id": session, "seq": self.seq, "healthy": healthy}
        text = b"{}" if kind == "garbage" else json.dumps(payload).encode()
        echo = self.gate.on_heartbeat(text, self.now * MS, retained=kind == "retained")
        got = self.call(
            3,
            Readable=kind != "garbage",
            Retained=kind == "retained",
            SessionId=session,
            Seq=self.seq,
            Healthy=healthy,
        )
        names = ("EchoSessionId", "EchoSeq", "EchoDecisionSeq")
        assert (tuple(got[name] for name in names) if got["Echo"] else None) == echo
        self.echoed = echo

    def state(self, session: str, status: str) -> None:
        payload = {"session_id": session, "status": status}
        unreadable = {"cleared": b"", "garbage": b"\xff{"}
        text = unreadable.get(status, json.dumps(payload).encode())
        self.gate.on_state(text, self.now * MS)
        alive = status in {"online", "degraded"}
        self.call(4, Readable=status not in unreadable, SessionId=session, Alive=alive)

    def broker_lost(self) -> None:
        self.gate.on_broker_lost(self.now * MS)
        self.call(5)

    def line_stopped(self) -> None:
        self.gate.on_line_stopped(self.now * MS)
        self.call(7)

    def wait(self, ms: int) -> None:
        """Time passes; parts that reach the gate meanwhile are decided there, in order."""
        end = self.now + ms
        for trigger_id, gate in sorted(self.parts.items(), key=lambda item: item[1]):
            if gate <= end and self.open_parts(trigger_id):
                self.now = max(self.now, gate)
                self.at_gate(trigger_id)
        self.now = end

    def open_parts(self, trigger_id: str) -> bool:
        return self.parts[trigger_id] >= 0

    def at_gate(self, trigger_id: str) -> None:
        record = self.gate.at_gate(trigger_id, self.now * MS)
        self.parts[trigger_id] = -1
        got = self.call(6, TriggerId=trigger_id)
        assert got["Cause"] == NUMBERS[record.cause]
        assert got["Release"] == (record.passed and not record.golden)
        self.passed += record.passed
