"""`metal-edge doctor`: whether the watchdog leaves the models their time."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.cli.doctor.finding import Level
from metal_edge.cli.doctor.watchdog import SHIPPED_S, check_watchdog
from metal_edge.settings import LineSettings

UNIT = Path(__file__).parents[3] / "systemd" / "metal-edge@.service"


def settings(heartbeat_hz: float = 5) -> LineSettings:
    given = {"bundle": "unused", "camera": {"kind": "folder"}, "heartbeat_hz": heartbeat_hz}
    return LineSettings.model_validate(given)


def test_its_own_idea_of_the_shipped_unit_is_the_units() -> None:
    (line,) = (x for x in UNIT.read_text().splitlines() if x.startswith("WatchdogSec="))
    assert float(line.removeprefix("WatchdogSec=")) == SHIPPED_S


# 2 s less a heartbeat's 0.2 s leave 1.8 s.
@pytest.mark.parametrize(
    ("inference_s", "level", "told"),
    [
        (0.001, Level.OK, "more than 100 lines"),
        (0.4, Level.OK, "enough for 4 lines"),
        (1.79, Level.OK, "enough for 1 lines"),
        (1.81, Level.WARN, "would restart"),
    ],
)
def test_lines_that_share_an_engine_must_fit(inference_s: float, level: Level, told: str) -> None:
    finding = check_watchdog(settings(), inference_s, {}, 1)
    assert finding.level is level
    assert told in finding.found
    assert bool(finding.remedy) is (level is Level.WARN)


def test_the_remedy_is_one() -> None:
    finding = check_watchdog(settings(), 3.0, {}, 1)
    seconds = int(finding.remedy.removeprefix("WatchdogSec=").split()[0])
    given = {"WATCHDOG_USEC": str(seconds * 1_000_000)}
    assert check_watchdog(settings(), 3.0, given, 1).level is Level.OK


def test_a_watchdog_that_watches_counts_instead_of_the_shipped_one() -> None:
    given = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}
    assert check_watchdog(settings(), 0.4, given, 7).level is Level.WARN
    assert check_watchdog(settings(), 0.4, given, 8).level is Level.OK  # another process'
