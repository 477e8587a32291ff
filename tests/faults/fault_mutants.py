"""Deliberate mistakes: each makes some scenario fail, or the scenario proves nothing."""

from __future__ import annotations

# name -> file below metal_edge, what is there, what replaces it
MUTANTS: dict[str, tuple[str, str, str]] = {
    "gate-ignores-silence": (
        "demo/gate.py",
        "if last is not None and now - last > self._settings.heartbeat_timeout_ns:",
        "if last is None and now < 0:",
    ),
}
