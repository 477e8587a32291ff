"""`metal-edge train --devices 2` as a user starts, stops and resumes it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest
from support.cli import Call, Running, listing, must, write_parts
from torch import allclose

from metal_edge.models.checkpoint import load_tensors

OPTIONS = (
    *("--epochs", 6, "--batch-size", 5, "--max-minutes", 1000),
    *("--train-precision", "fp32", "--seed", 5, "--accelerator", "cpu"),
    # No attention: a key's bias has a gradient of 0 but for rounding, which Adam blows up.
    *("--model", "l2bt", "--image-size", 64),
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("devices") / "parts", 12)


def test_stopped_in_two_processes_it_goes_on_in_two_and_equals_one(
    parts: Path, tmp_path: Path
) -> None:
    """All three as commands of their own: the backbone's rounding depends on the process's number
    of threads, and where a channel hardly varies, standardisation multiplies it."""
    run, command = tmp_path / "run", ("train", parts, *OPTIONS)
    with Running(tmp_path / "log", *command, "-o", run, "--devices", 2) as training:
        training.wait_said("training: ")
        processes = workers_of(training.process.pid)
        assert len(processes) == 2
        assert training.stop(signal.SIGINT) == 130
        assert training.err.count("the same command goes on from there") == 1
        assert training.err.count("training in 2 processes") == 1
        assert "Traceback" not in training.err
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert listing(run).keys() == {"run.json", "state.safetensors"}

    resumed = must(*command, "-o", run, "--devices", 2)
    assert resumed.err.count("going on from epoch") == 1
    assert resumed.out.count("checkpoint.safetensors") == 1
    assert resumed.out.count("\n") == 1
    alone = tmp_path / "alone"
    must(*command, "-o", alone)
    assert listing(run).keys() == listing(alone).keys()
    (first, meta), (second, other) = (
        load_tensors(folder / "checkpoint.safetensors") for folder in (run, alone)
    )
    assert meta["best_epoch"] == other["best_epoch"]
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert allclose(tensor, second[name], rtol=1e-3, atol=1e-4), name


def test_killing_the_command_ends_its_processes(parts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", parts, *OPTIONS, "-o", run, "--devices", 2, "--save-every", 0)
    with Running(tmp_path / "log", *command) as training:
        training.wait_for((run / "state.safetensors").exists, "a saved state")
        handles = [os.pidfd_open(pid) for pid in workers_of(training.process.pid)]
        training.stop(signal.SIGKILL)
    assert len(handles) == 2
    for handle in handles:
        try:
            assert ends_within(handle, 10)
        finally:
            os.close(handle)


def ends_within(process: int, seconds: float) -> bool:
    """A process's file descriptor becomes readable when it ends."""
    return bool(select.select([process], [], [], seconds)[0])


def workers_of(parent: int) -> list[int]:
    return [
        int(pid)
        for task in Path(f"/proc/{parent}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--devices", 8), 78, "a batch of 5 cannot be divided between 8 processes"),
        (("--devices", 10, "--batch-size", 16), 65, "cannot be divided between 10 processes"),
        (("--train-precision", "fp16"), 78, "fp16 needs a GPU"),
        (("--devices", 0), 64, "--devices"),
    ],
)
def test_the_impossible_is_refused_at_once(
    call: Call, parts: Path, options: tuple[object, ...], code: int, told: str
) -> None:
    run = parts.parent / "refused"
    refused = call("train", parts, *OPTIONS, *options, "-o", run)
    assert refused.code == code
    assert told in refused.error
    assert not run.exists()
