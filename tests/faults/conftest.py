"""A rig per test, and the report of the whole run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fault_mutants import mutated
from fault_network import Cable, NoCableError
from fault_report import Row, page, table
from rig import Rig
from rig_records import Audit
from support.broker import Broker, find_mosquitto

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "faults"
FAST = bool(os.environ.get("FAST"))
ROWS = pytest.StashKey[list[Row]]()
BEGAN = time.monotonic()

MakeRig = Callable[..., Rig]


class Trial:
    """One row of the report in the making."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def recovered(self, seconds: float) -> None:
        """Notes one recovery; the limit is judged in `judge`."""
        self.row.recoveries.append(seconds)

    def judge(self, audit: Audit) -> Audit:
        """The demands that every fault must meet."""
        row = self.row
        row.parts = (row.parts or 0) + audit.parts
        row.uninspected = (row.uninspected or 0) + len(audit.uninspected)
        row.lost = (row.lost or 0) + len(audit.lost_events)
        assert audit.uninspected == []
        assert audit.escapes == []
        assert audit.broken_rules == []
        assert audit.lost_events == []
        assert audit.passed > 0
        self.judge_recovery()
        return audit

    def over(self, rig: Rig, mended_ns: int, timeout_s: float, *, parts: int) -> Audit:
        """How most scenarios end: a part passes again, more come, and the run is judged."""
        self.recovered(rig.recovery_s(mended_ns, timeout_s))
        rig.wait_parts(parts)
        return self.judge(rig.finish())

    def judge_recovery(self) -> None:
        """Holds it against the limit, which is meant for a computer that is there for the line:
        where others take their share, the limit is longer, twice at most, and the row says so.
        """
        row = self.row
        if row.limit_s is None or not row.recoveries:
            return
        slowest, load = max(row.recoveries), os.getloadavg()[0] / (os.cpu_count() or 1)
        if slowest > row.limit_s and load > 1:
            row.notes.append(f"on a busy machine: load {load:.1f} per core")
        limit_s = row.limit_s * min(2.0, max(1.0, load))
        assert slowest <= limit_s, f"took {slowest:.1f} s, not {limit_s:.1f} s"


@pytest.fixture
def fast() -> bool:
    """FAST=1: fewer repetitions, and of similar scenarios one (`skip_if_fast`)."""
    return FAST


def skip_if_fast() -> None:
    """For a scenario that is like another; not when a mutant is to be noticed."""
    if os.environ.get("FAST") == "1":
        pytest.skip("FAST=1")


@pytest.fixture
def chance() -> random.Random:
    """Moments are chosen at random; FAULTS_SEED repeats a run."""
    seed = int(os.environ.get("FAULTS_SEED", time.time_ns() % 10**6))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """The test's row: `@pytest.mark.fault(fault, how, limit_s=..., seen=...)`."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "a scenario names its fault"
    row = Row(*marker.args, **marker.kwargs)
    request.node.stash[ROWS] = [row]
    return Trial(row)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Where the daemon and the PLC are imported from: FAULTS_PACKAGE (a folder that holds
    metal_edge), or with FAULTS_MUTANT a copy with that mistake; None for this checkout.
    """
    given = os.environ.get("FAULTS_PACKAGE")
    name = os.environ.get("FAULTS_MUTANT")
    if not name:
        return Path(given) if given else None
    target = tmp_path_factory.mktemp("mutant")
    mutated(Path(given) if given else REPOSITORY, name, target)
    return target


@pytest.fixture
def make_rig(tmp_path: Path, package: Path | None) -> Iterator[MakeRig]:
    """Builds a rig; everything is ended with the test."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with ExitStack() as stack:
        yield lambda **more: Rig(tmp_path, stack, package=package, **more)


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """A rig with a broker of its own."""
    return make_rig()


@pytest.fixture
def cable() -> Iterator[Cable]:
    """Into a network namespace; the near end has an address by now."""
    try:
        with Cable() as made:
            yield made
    except NoCableError as error:
        pytest.skip(f"no network namespace: {error}")


@pytest.fixture
def cabled(cable: Cable, tmp_path: Path) -> Broker:
    """A broker that listens on loopback and at the near end of the cable, on the same port."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.also(f"listener {broker.port} {cable.address}")
    return broker


@pytest.fixture
def distant(make_rig: MakeRig, cable: Cable, cabled: Broker) -> Rig:
    """A line at work whose daemon lies at the far end of the cable."""
    rig = make_rig(broker=cabled)
    rig.daemon_prefix = cable.inside
    rig.start(mqtt={"host": cable.address})
    return rig


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(fault, how, limit_s, seen): a row of the report")
    config.stash[ROWS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is None:
        return report
    rows = item.config.stash[ROWS]
    row = item.stash.get(ROWS, [None])[0]
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        row = row or Row(*marker.args, **marker.kwargs)
        row.result = reason.removeprefix("Skipped: ")
        rows.append(row)
    elif report.when == "call":
        assert row is not None
        row.result = "survived" if report.passed else "FAILED"
        rows.append(row)
    elif report.failed and report.when == "setup":
        rows.append(Row(*marker.args, **marker.kwargs, result="FAILED to start"))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    command = os.environ.get("FAULTS_COMMAND", "make test-faults")
    text = page(rows, command, time.monotonic() - BEGAN)
    report = Path(os.environ.get("FAULTS_REPORT", BUILD / "report.md"))
    report.write_text(text, encoding="utf-8")
    terminalreporter.write_line("")
    terminalreporter.write(table(rows))
    docs = os.environ.get("FAULTS_WRITE")
    if docs:
        Path(docs).write_text(text, encoding="utf-8")
