"""Lies here so that pytest puts `tests/` on the path: test modules import `support.*`."""
