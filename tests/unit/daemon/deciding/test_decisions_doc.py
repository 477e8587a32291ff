"""docs/decisions.md says what the code does: every reason with its verdict, the state table."""

from __future__ import annotations

import re
from pathlib import Path

from metal_edge.daemon.deciding.decision import Reason
from metal_edge.daemon.deciding.transitions import TABLE, Event, State

PAGE = (Path(__file__).parents[4] / "docs" / "decisions.md").read_text(encoding="utf-8")


def test_every_reason_is_explained_once_with_its_verdict() -> None:
    told = re.findall(r"^\| `(\w+)` \| (pass|reject|unknown) \| \S", PAGE, re.MULTILINE)
    verdicts = {Reason.OK: "pass", Reason.SCORE: "reject"}
    assert sorted(told) == sorted((r.value, verdicts.get(r, "unknown")) for r in Reason)


def test_the_state_table_is_the_codes() -> None:
    head = "".join(f" | `{event.value}`" for event in Event)
    assert f"| state{head} |" in PAGE
    for state in State:
        after = [TABLE[state, event] for event in Event]
        cells = ["·" if there is state else there.value for there in after]
        assert f"| `{state.value}` | {' | '.join(cells)} |\n" in PAGE
