"""Who saw it: counts parts that passed the gate without having been inspected. Pure.

Nothing the gate believed is taken as proof. Three records made by others are joined with what
the gate did: the photo-eye's (when which part came), the camera's own (which part truly stood
before it at each exposure, and whether the picture shows it), and the daemon's words as a third
party heard them. Times are ns of CLOCK_MONOTONIC on one host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A part at the photo-eye, and what the gate did with it (None: the log does not say)."""

    part_id: str
    trigger_id: str
    t_ns: int
    gate_ns: int
    passed: bool | None
    arrival_ns: int | None  # of the decision, as the PLC stamped it


@dataclass(frozen=True, slots=True)
class Exposure:
    """One picture. `shows` is the part on it, None for an empty belt or a spoilt picture."""

    frame_id: str
    shows: str | None
    t_ns: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A verdict of the daemon, from `decision` or its copy on `event`."""

    session_id: str
    trigger_id: str
    part_id: str
    verdict: str
    frame_id: str | None


@dataclass(frozen=True, slots=True)
class Life:
    """From a daemon's start to its end; `until_ns` is None while it runs."""

    session_id: str
    from_ns: int
    until_ns: int | None


@dataclass(frozen=True, slots=True)
class Uninspected:
    """A part that passed and should not have; `why` for a person."""

    part_id: str
    why: str


def uninspected(
    passages: Iterable[Passage],
    exposures: Iterable[Exposure],
    statements: Iterable[Statement],
    lives: Iterable[Life],
) -> list[Uninspected]:
    """The parts let go without an in-time `pass`, by the daemon running at the time, on a
    picture of that very part taken after its trigger."""
    pictures = {exposure.frame_id: exposure for exposure in exposures}
    words: dict[str, list[Statement]] = {}
    for statement in statements:
        words.setdefault(statement.trigger_id, []).append(statement)
    alive = {life.session_id: life for life in lives}
    found = []
    for passage in passages:
        if passage.passed:
            why = _doubt(passage, words.get(passage.trigger_id, []), pictures, alive)
            if why is not None:
                found.append(Uninspected(passage.part_id, why))
    return found


def _doubt(
    passage: Passage,
    statements: list[Statement],
    pictures: Mapping[str, Exposure],
    alive: Mapping[str, Life],
) -> str | None:
    """What is missing for this part to have been inspected; None when nothing is."""
    if not statements:
        return "nobody heard a verdict"
    for statement in statements:  # copies of one verdict; one that differs is a doubt of its own
        if (statement.part_id, statement.verdict) != (passage.part_id, "pass"):
            return f"the daemon said {statement.verdict} of {statement.part_id}"
    if passage.arrival_ns is None or passage.arrival_ns >= passage.gate_ns:
        return "no verdict before the gate"
    life = alive.get(statements[0].session_id)
    if life is None or not _covers(life, passage.t_ns):
        return "said by a daemon that did not run"
    return _doubt_of_picture(passage, statements[0].frame_id, pictures)


def _doubt_of_picture(
    passage: Passage, frame_id: str | None, pictures: Mapping[str, Exposure]
) -> str | None:
    picture = pictures.get(frame_id or "")
    if picture is None:
        return f"picture {frame_id} was never taken"
    if picture.shows != passage.part_id:
        return f"the picture shows {picture.shows or 'nothing'}"
    return "the picture is older than the trigger" if picture.t_ns < passage.t_ns else None


def _covers(life: Life, t_ns: int) -> bool:
    return life.from_ns <= t_ns and (life.until_ns is None or t_ns <= life.until_ns)
