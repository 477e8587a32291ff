"""Lies here so that pytest puts `tests/` on the path (test modules import `support.*`), and keeps
`pytest tests` from what has a make target of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Collected only when asked for by path: 100 MB of proprietary wheels; compilers and interpreters; a
# booted machine; minutes of faults.
ASKED_FOR = tuple(HERE / name for name in ("tensorrt", "kernels", "systemd", "faults", "cameras"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [
        Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args
    ]
    for suite in ASKED_FOR:
        here = any(path.is_relative_to(suite) for path in asked)
        if collection_path.is_relative_to(suite) and not here:
            return True
    return None
