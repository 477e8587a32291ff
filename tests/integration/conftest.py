"""Fixtures around a real broker and a real daemon process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.broker import Broker, Listener, find_mosquitto
from support.cli import Call, Trained, called, train_once
from support.daemon_process import Daemon, write_settings
from support.once import once
from support.tiny_bundle import build_bundle, write_image

StartDaemon = Callable[..., Daemon]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A private mosquitto that lets anybody do anything."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "broker"
    folder.mkdir()
    with Broker(folder) as running:
        yield running


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    """Hears everything on `broker`."""
    with Listener(broker) as listening:
        yield listening


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A folder with a bundle and two pictures: good.png (score 0.2) and bad.png (white spot)."""
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "good.png", 51)
    write_image(tmp_path / "images" / "bad.png", 51, spot=8)
    return tmp_path


@pytest.fixture
def start(line: Path, broker: Broker) -> Iterator[StartDaemon]:
    """Starts a daemon on `line`; keyword arguments change its settings' sections."""
    with ExitStack() as stack:

        def run(environment: dict[str, str] | None = None, **sections: Any) -> Daemon:
            config = write_settings(line / "line.toml", broker, **sections)
            return stack.enter_context(Daemon(config, environment))

        yield run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One small trained run for every test of the command line."""
    return Trained(once(tmp_path_factory, "trained", train_once))


@pytest.fixture
def own_run(trained: Trained, tmp_path: Path) -> Path:
    """The trained run for a test that changes it: results are replaced, never written into.

    Without what another worker's build has there while it works.
    """
    working = shutil.ignore_patterns(".*")
    copy = shutil.copytree(trained.run, tmp_path / "run", copy_function=os.link, ignore=working)
    return Path(copy)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Calls `metal-edge` within this process."""
    with called(monkeypatch, capfd) as calling:
        yield calling
