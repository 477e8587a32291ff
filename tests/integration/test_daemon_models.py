"""Every kind of model at the line: trained, built, and judged by the daemon's own process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.broker import Broker, Listener
from support.cli import Call
from support.daemon_process import STATION, Daemon, write_settings

from metal_edge.demo.dataset import write_dataset
from metal_edge.imaging import read_image, write_png

KINDS: dict[str, tuple[object, ...]] = {
    "metal": ("--shapes", "squares", "--epochs", 3),
    "metal-features": ("--image-size", 64, "--epochs", 3),
    "l2bt": ("--image-size", 64, "--epochs", 3),
    "anovit": ("--image-size", 64, "--epochs", 3),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 good parts of the simulated line."""
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_dataset(folder, seed=3, train_good=24, test_good=1, per_defect=1)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_gives_the_verdicts_of_its_bundle(  # noqa: PLR0917  (fixtures)
    call: Call, data: Path, tmp_path: Path, broker: Broker, listener: Listener, kind: str
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    trained = call("train", data, "-o", run, "--model", kind, "--batch-size", 8, *KINDS[kind])
    assert trained.code == 0, trained.err
    built = call("build-engine", run, "--precision", "fp16", "-o", bundle, "--json")
    assert built.code == 0, built.err
    images = tmp_path / "images"
    images.mkdir()
    good = next((data / "train" / "good").iterdir())
    shutil.copy(good, images / "good.png")
    picture = read_image(good).copy()
    picture[: picture.shape[0] // 2] = (255, 0, 255)
    write_png(images / "painted.png", picture)
    with Daemon(write_settings(tmp_path / "line.toml", broker)) as daemon:
        daemon.armed(listener)
        assert listener.wait("model").data["sha256"] == built.json["sha256"]
        for trigger, part in (("t1", "good"), ("t2", "painted")):
            listener.trigger(STATION, trigger, part)
        passed, rejected = listener.verdict("t1"), listener.verdict("t2")
        assert daemon.stop() == 0
    threshold = built.json["threshold"]["score"]
    assert passed["threshold"] == pytest.approx(threshold)
    assert (passed["verdict"] == "pass") == (passed["score"] < threshold)
    assert rejected["score"] > passed["score"]
    assert (rejected["verdict"], rejected["reason"]) == ("reject", "score_at_or_above_threshold")
