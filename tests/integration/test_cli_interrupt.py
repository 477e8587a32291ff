"""Ctrl-C, SIGTERM and kill -9 in the middle: nothing half-written, and the work goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Running, listing, must, write_parts
from torch import Tensor, equal, uint8

from metal_edge.bundle import Bundle
from metal_edge.models.checkpoint import load_tensors

# A budget of time would bend the learning rate by how long the pauses were.
OPTIONS = (
    *("--epochs", 10, "--batch-size", 5, "--max-minutes", 1000),
    *("--train-precision", "fp32", "--seed", 5, "--image-size", 128),
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("interrupt") / "parts", 12)


@pytest.fixture(scope="module")
def uninterrupted(parts: Path) -> Path:
    """A run that nobody disturbed: two steps in each of its epochs."""
    run = parts.parent / "uninterrupted"
    must("train", parts, "-o", run, *OPTIONS)
    return run


def assert_same_result(one: Path, other: Path) -> None:
    """Bit for bit; only the file's header may list its entries in another order."""
    assert listing(one).keys() == listing(other).keys()
    (first, first_meta), (second, second_meta) = (
        load_tensors(run / "checkpoint.safetensors") for run in (one, other)
    )
    assert first_meta == second_meta
    assert first.keys() == second.keys()
    assert all(equal(bits(value), bits(second[name])) for name, value in first.items())


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(uint8)


def go_on(parts: Path, run: Path) -> str:
    """The same command again, to its end; what it said."""
    return must("train", parts, "-o", run, *OPTIONS).err


def test_stopped_training_goes_on(parts: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Twice: by Ctrl-C, then by SIGTERM."""
    run, log = tmp_path / "run", tmp_path / "log"
    for number in (signal.SIGINT, signal.SIGTERM):
        with Running(log, "train", parts, "-o", run, *OPTIONS) as training:
            training.wait_said("training: ")
            assert training.stop(number) == 130
            assert "the same command goes on from there" in training.err
            assert "Traceback" not in training.err
            assert ("going on from epoch" in training.err) == (number == signal.SIGTERM)
        assert listing(run).keys() == {"run.json", "state.safetensors"}
    assert "going on from epoch" in go_on(parts, run)
    assert_same_result(run, uninterrupted)


def test_killed_training_goes_on(parts: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", parts, "-o", run, *OPTIONS, "--save-every", 0)
    with Running(tmp_path / "log", *command) as training:
        training.wait_for((run / "state.safetensors").exists, "a saved state")
        training.stop(signal.SIGKILL)
    assert not (run / "checkpoint.safetensors").exists()
    assert "going on from epoch" in go_on(parts, run)
    assert_same_result(run, uninterrupted)


def stop_when(
    log: Path, moment: Callable[[Running], object], number: signal.Signals, *command: object
) -> None:
    with Running(log, *command) as running:
        running.wait_for(lambda: moment(running), "the moment to stop it")
        assert running.stop(number) == 130
        assert "Traceback" not in running.err
    log.unlink()


@pytest.mark.parametrize("moment", ["exporting", "writing int8", "partial bundle"])
def test_a_stopped_build_leaves_the_old_bundle(own_run: Path, tmp_path: Path, moment: str) -> None:
    if moment == "exporting":
        (own_run / "model.onnx").unlink()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("an older bundle")
    before = listing(tmp_path)

    def now(running: Running) -> object:
        if moment == "partial bundle":
            return list(tmp_path.glob(".bundle.*"))
        return moment in running.err

    number = signal.SIGTERM if moment == "writing int8" else signal.SIGINT
    command = ("build-engine", own_run, "--precision", "int8", "--no-sweep", "-o", bundle)
    stop_when(tmp_path / "log", now, number, *command)
    assert listing(tmp_path) == before


NATIVE_CODE_SWALLOWS_CTRL_C = """
import os, signal, sys
from safetensors import SafetensorError
from metal_edge.cli.app import main
from metal_edge.models import checkpoint

def safe_open(*_given, **_named):
    try:
        os.kill(os.getpid(), signal.{signal})
    except KeyboardInterrupt:
        raise SafetensorError("could not determine the shape") from None

checkpoint.safe_open = safe_open
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interruption_inside_native_code_is_no_damaged_file(
    own_run: Path, tmp_path: Path, number: str
) -> None:
    """As seen in CI: Ctrl-C while safetensors was calling Python came out as its own error."""
    code = NATIVE_CODE_SWALLOWS_CTRL_C.format(signal=number)
    given = ["export", str(own_run), "-o", str(tmp_path / "model.onnx")]
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 130, done.stderr
    assert "damaged" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_evaluation_leaves_no_half(
    own_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = listing(tmp_path)
    report = tmp_path / "report"
    command = ("evaluate", own_run, "-o", report)
    stop_when(tmp_path / "log", lambda running: "evaluating: " in running.err, number, *command)
    after = listing(tmp_path)
    assert {path: after[path] for path in before} == before
    whole = {"report", "report/report.json", "report/gallery.png"}  # the page comes last
    assert after.keys() - before.keys() <= whole


def test_a_new_bundle_replaces_a_changed_one(own_run: Path, tmp_path: Path) -> None:
    """Also through a link, which stays one."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "manifest.json").write_text("damaged")
    (tmp_path / "current").symlink_to("v1")
    must("build-engine", own_run, "--precision", "int8", "--no-sweep", "-o", tmp_path / "current")
    assert (tmp_path / "current").readlink() == Path("v1")
    assert Bundle.open(tmp_path / "v1").manifest.precision == "int8"
    assert {path.name for path in tmp_path.iterdir()} == {"v1", "current", "run"}
