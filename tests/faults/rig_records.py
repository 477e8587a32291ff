"""What a run under fault leaves: its audit, its files as they grow, its daemons' lives."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.daemon_process import Daemon

from metal_edge.demo.witness import Passage, Uninspected


@dataclass
class Audit:
    """What became of one run."""

    parts: int
    passed: int
    uninspected: list[Uninspected]
    escapes: list[str]
    lost_events: list[str]
    repeated_events: int
    stale_decisions: int
    causes: dict[str, int]
    broken_rules: list[str] = field(default_factory=list)


class Tail:
    """Complete lines of a growing file, read once each; JSON, unless `plain`."""

    def __init__(self, path: Path, plain: bool = False) -> None:
        self._path = path
        self._plain = plain
        self._offset = 0
        self._lines: list[Any] = []

    def count(self, text: str) -> int:
        """Lines of a plain file that hold this text."""
        return sum(text in line for line in self.lines())

    def lines(self) -> list[Any]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            texts = whole.decode("utf-8").splitlines()
            self._lines += texts if self._plain else [json.loads(text) for text in texts]
        return self._lines


@dataclass
class Run:
    """One process of the daemon."""

    daemon: Daemon
    from_ns: int
    until_ns: int | None = None


def passage(eye: dict[str, Any], line: dict[str, Any] | None) -> Passage:
    """From what the photo eye saw of a part, and what the gate did with it, if anything."""
    margin = None if line is None else line["margin_ms"]
    return Passage(
        part_id=eye["part_id"],
        trigger_id=eye["trigger_id"],
        t_ns=eye["t_ns"],
        gate_ns=eye["gate_ns"],
        passed=None if line is None else line["gate"] == "pass",
        arrival_ns=None if margin is None else eye["gate_ns"] - round(margin * 1e6),
    )


def age_s(heard: Any) -> float:
    """How old a message was when it came; both clocks are this host's."""
    return heard.at + (time.time() - time.monotonic()) - heard.data["t_publish_ns"] / 1e9
