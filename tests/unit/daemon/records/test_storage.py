"""What outbox and evidence rely on in SQLite."""

from __future__ import annotations

from pathlib import Path

from metal_edge.daemon.records.storage import open_database


def test_what_is_committed_survives_a_power_cut(tmp_path: Path) -> None:
    """No test can cut the power; SQLite promises it for these two (sqlite.org/pragma.html)."""
    for _ in range(2):  # a file that is there already, too: `synchronous` belongs to the connection
        database = open_database(tmp_path / "a.sqlite", "", 1)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.close()
