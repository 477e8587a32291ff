"""Cameras that do as they are told, opened and closed for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support.told_camera import Step, ToldCamera


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[..., ToldCamera]:
    def make(*connections: Iterable[Step] | Exception, **more: Any) -> ToldCamera:
        camera = ToldCamera(*connections, **more)
        request.addfinalizer(camera.close)
        camera.open()
        return camera

    return make
