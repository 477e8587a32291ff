"""`metal-edge evidence`: finds the pictures of parts, and copies them out."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metal_edge.cli.console import print_json, say, say_result
from metal_edge.daemon.mqtt.messages import iso_utc
from metal_edge.daemon.records.evidence import INDEX, place_of
from metal_edge.daemon.records.evidence_index import Look, find
from metal_edge.errors import DataError, MissingInputError, OutputError, SettingsError

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


def run_evidence(
    path: Path, part: str | None, since: str | None, out: Path | None, as_json: bool, limit: int
) -> None:
    """Lists looks at parts, newest first; with `out`, copies their pictures there.

    Raises:
        MetalEdgeError: no such folder, or what was asked for cannot be understood or written.
    """
    index = path / INDEX
    if not index.is_file():
        raise MissingInputError(
            f"{path} holds no {INDEX}", "name the folder that evidence.path names"
        )
    since_ns = 0 if since is None else moment_ns(since, time.time_ns())
    try:
        looks = list(find(index, part_id=part, since_ns=since_ns, limit=limit))
    except sqlite3.Error as error:
        raise DataError(
            f"{index} cannot be read ({error})", "look into the daemon's log"
        ) from error
    found = [_described(path, look) for look in looks]
    if out is not None:
        _copy(path, looks, out)
    if as_json:
        print_json({"looks": found})
        return
    for look, one in zip(looks, found, strict=True):
        picture = one["files"].get("raw", "-")
        say_result(f"{one['t']}  {look.part_id or '-'}  {look.verdict}  {look.reason}  {picture}")
    if len(looks) == limit:
        say(f"only the newest {limit} are shown: --limit shows more")
    if not looks:
        say("no pictures of such parts")


def moment_ns(text: str, now_ns: int) -> int:
    """`90m`, `12h`, `3d` before now, or a moment in ISO 8601 (UTC unless it says otherwise).

    Raises:
        SettingsError: neither.
    """
    ago = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if ago is not None:
        return now_ns - int(ago[1]) * _UNITS_S[ago[2]] * 1_000_000_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"--since {text} is no moment", "say 90m, 12h, 3d or 2026-01-31T12:00"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e9)


def _described(path: Path, look: Look) -> dict[str, Any]:
    files = {
        kind: str(place_of(path, name))
        for kind, name in (("raw", look.raw), ("map", look.map), ("overlay", look.overlay))
        if name is not None
    }
    plain = {key: value for key, value in asdict(look).items() if key not in files}
    return {**plain, "t": iso_utc(look.t_ns), "files": files}


def _copy(path: Path, looks: list[Look], out: Path) -> None:
    """Named by time and content: a part id may hold anything. `--json` says which is which."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for look in looks:
            stamp = re.sub(r"[^0-9]", "", iso_utc(look.t_ns))
            for kind, name in (("raw", look.raw), ("map", look.map), ("overlay", look.overlay)):
                if name is None:
                    continue
                source = place_of(path, name)
                if source.exists():
                    shutil.copyfile(source, out / f"{stamp}-{name[:12]}-{kind}{source.suffix}")
                else:  # the oldest give way while the daemon works
                    say(f"{source} is gone")
    except OSError as error:
        where = error.filename or out
        raise OutputError(
            f"cannot copy to {where} ({error.strerror})", "choose another place"
        ) from error
