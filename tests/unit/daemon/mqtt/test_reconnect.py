"""How often a lost broker is asked for, and what its failures say."""

from __future__ import annotations

from typing import Any

import pytest

from metal_edge.daemon.mqtt.reconnect import open_connection
from metal_edge.errors import UnavailableError


class Times:
    """In place of waiting and of dice: notes what each is asked for."""

    def __init__(self, tries: int) -> None:
        self.waited: list[float] = []
        self.asked: set[tuple[float, float]] = set()
        self._tries = tries

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return len(self.waited) > self._tries

    def uniform(self, low: float, high: float) -> float:
        self.asked.add((low, high))
        return 0.8


class Opening:
    """Connections that fail as told, then one that opens."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    def __call__(self) -> Any:
        return self

    def open(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


def test_the_delay_grows_from_one_second_to_five_with_jitter_and_never_ends() -> None:
    times = Times(tries=40)
    gone = [UnavailableError("gone", "start it")] * 40
    assert open_connection(Opening(*gone), times, times) is None  # type: ignore[arg-type]
    assert times.waited == pytest.approx([0.8, 1.6, 3.2, *[4.0] * 38])
    ((low, high),) = times.asked
    assert 0 < low < high <= 1, "never longer than the bound, never the same for all"


def test_each_failure_is_told_once_and_a_defect_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = Times(tries=40)
    gone, denied = UnavailableError("gone", "start it"), UnavailableError("denied", "ask")
    opening = Opening(gone, gone, denied, RuntimeError("defect"), gone, gone)
    assert open_connection(opening, times, times) is opening  # type: ignore[arg-type]
    assert len(times.waited) == 7
    said = [record.getMessage() for record in caplog.records]
    assert said == [str(gone), str(denied), "connecting to the broker failed", str(gone)]
    assert "RuntimeError: defect" in caplog.text
