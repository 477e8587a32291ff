"""What of a line's settings may change while it runs. Pure."""

from __future__ import annotations

from typing import Any

from metal_edge.settings import LineSettings

# Whole sections that take effect between two parts.
_FREE = {"bundle", "regions", "recipes", "gate", "decision"}
# The queue's size is part of what a PLC relies on while it has triggers in it.
_FIXED_KEYS = {"decision.trigger_queue"}
_FREE_IN_A_VIEW = {"bundle", "regions"}


def needs_restart(old: LineSettings, new: LineSettings) -> list[str]:
    """Dotted keys that differ and cannot change now; empty when the new settings can be taken."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    keys: list[str] = []
    for name in before:
        if name == "views":
            keys += _views(before[name], after[name])
        elif name not in _FREE:
            keys += _differing(name, before[name], after[name])
        else:
            found = _differing(name, before[name], after[name])
            keys += [key for key in found if key in _FIXED_KEYS]
    return sorted(keys)


def _views(before: list[Any], after: list[Any]) -> list[str]:
    if [view["camera_id"] for view in before] != [view["camera_id"] for view in after]:
        return ["views"]
    return [
        key
        for one, other in zip(before, after, strict=True)
        for key in _differing(f"views.{one['camera_id']}", one, other)
        if key.split(".")[2] not in _FREE_IN_A_VIEW
    ]


def _differing(name: str, before: Any, after: Any) -> list[str]:
    """The section's keys that differ, or its own name where it is a plain value."""
    if before == after:
        return []
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [name]
    keys = before.keys() | after.keys()
    return [f"{name}.{key}" for key in keys if before.get(key) != after.get(key)]
