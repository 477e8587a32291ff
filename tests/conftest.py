"""Lies here so that pytest puts `tests/` on the path (test modules import `support.*`), keeps
`pytest tests` from what has a make target of its own, and makes a busy machine no reason to fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported. Two workers, or a worker and its daemon, that each spin on all cores
# take ten times as long as one after the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

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
