"""An outbox on a real file, its clock and its writer moved by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.outbox_by_hand import HandClock, open_outbox

from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "first" / "outbox.sqlite"


@pytest.fixture
def outbox(path: Path, clock: HandClock) -> Iterator[SqliteOutbox]:
    made = open_outbox(path, clock)
    yield made
    made.start()
    made.close(5)
