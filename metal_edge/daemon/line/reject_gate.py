"""Triggers with the reject gate in mind: when it is too late, and where the part meets it. Pure."""

from __future__ import annotations

from metal_edge.domain import Gate, Trigger
from metal_edge.settings import GateSettings


def make_trigger(
    trigger_id: str,
    part_id: str | None,
    t_mono_ns: int,
    deadline_ms: float,
    settings: GateSettings,
    *,
    encoder: int | None = None,
    max_exposure_delay_ms: float | None = None,
) -> Trigger:
    """A trigger whose deadline is the earlier of its own and the gate's.

    Args:
        trigger_id: unique within a session.
        part_id: the PLC's name for the part; None where nobody named it.
        t_mono_ns: arrival or exposure; everything counts from here.
        deadline_ms: of the command, or the line's.
        settings: of the gate.
        encoder: count at the photo-eye, if known.
        max_exposure_delay_ms: how long this part stays before the camera; None: long enough.
    """
    budget_ms = deadline_ms
    if settings.offset_ms is not None:
        budget_ms = min(budget_ms, settings.offset_ms - settings.margin_ms)
    limit_ms = max_exposure_delay_ms
    return Trigger(
        trigger_id=trigger_id,
        part_id=part_id,
        t_mono_ns=t_mono_ns,
        deadline_mono_ns=t_mono_ns + round(budget_ms * 1e6),
        encoder=encoder,
        gate=_meet(t_mono_ns, encoder, settings),
        expose_by_mono_ns=None if limit_ms is None else t_mono_ns + round(limit_ms * 1e6),
    )


def _meet(t_mono_ns: int, encoder: int | None, settings: GateSettings) -> Gate | None:
    offset_ms, counts = settings.offset_ms, settings.encoder_counts
    if offset_ms is None and counts is None:
        return None
    return Gate(
        offset_ms=offset_ms,
        encoder_counts=counts,
        t_mono_ns=None if offset_ms is None else t_mono_ns + round(offset_ms * 1e6),
        # A plain sum: only the PLC knows where its counter wraps.
        encoder=None if encoder is None or counts is None else encoder + counts,
    )
