"""The `metal-edge` command as a stranger starts it: a process, its output, what it left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from metal_edge.cli.app import main
from metal_edge.cli.build import run_calibrate
from metal_edge.demo.dataset import write_dataset
from support.broker import wait_until

ERROR = "metal-edge: error: "
COMMAND = [sys.executable, "-m", "metal_edge"]
# Two processes that each spin on all cores take ten times as long as one after the other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be nothing but strict JSON."""
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def error(self) -> str:
        """The one error line; fails where there is none, or more, or a traceback."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        found = [line for line in lines if line.startswith(ERROR)]
        assert len(found) == 1, self.err
        assert lines[-1] == found[0], f"something follows the error:\n{self.err}"
        what, _, remedy = found[0].removeprefix(ERROR).rpartition(": ")
        assert what, found[0]
        assert remedy, found[0]
        return found[0].removeprefix(ERROR)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def cli(*arguments: object, environment: dict[str, str] | None = None, **more: Any) -> Outcome:
    """Runs the command to its end in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # on a very busy machine
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        **more,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def must(*arguments: object, **more: Any) -> Outcome:
    """`cli` that has to succeed."""
    outcome = cli(*arguments, **more)
    assert outcome.code == 0, outcome.err + outcome.out
    return outcome


Call = Callable[..., Outcome]


@contextmanager
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """The same entry point without a new process: for refusals, which need no isolation.

    An exception that is not a MetalEdgeError fails the test, as a traceback would.
    """
    before = signal.getsignal(signal.SIGTERM)
    root, daemon = logging.getLogger(), logging.getLogger("metal_edge.daemon")
    handlers, levels = list(root.handlers), (root.level, daemon.level)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metal-edge", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), output.out, output.err)

    yield call
    # What the end of the process would undo.
    signal.signal(signal.SIGTERM, before)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    for handler in [h for h in handlers if h not in root.handlers]:
        root.addHandler(handler)
    for logger, level in zip((root, daemon), levels, strict=True):
        logger.setLevel(level)


class Running:
    """A command under way, its standard error in a file."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdout=errors,
                stderr=errors,
                env={**os.environ, **ENVIRONMENT},
                # A test run in the background of a shell would hand down an ignored SIGINT.
                preexec_fn=_default_signals,  # noqa: PLW1509
            )

    @property
    def err(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 240) -> None:
        """Returns when it holds; fails if the command ends before."""

        def holds() -> bool:
            met = bool(condition())
            assert met or self.process.poll() is None, f"ended before {what}:\n{self.err}"
            return met

        wait_until(holds, what, timeout_s)

    def wait_said(self, text: str) -> None:
        self.wait_for(lambda: text in self.err, f"{text!r} in its output")

    def stop(self, number: signal.Signals) -> int:
        """Sends a signal; the exit code, negative where the signal itself ended it."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        sys.stdout.write(self.err)  # pytest shows it when the test fails


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def listing(folder: Path) -> dict[str, str]:
    """Every path below `folder` with its content's digest, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def write_parts(folder: Path, count: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> Path:
    """A folder of `count` small textured RGB pictures, all different: NNN.png."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(90, 160, (size[1], size[0], 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@dataclass(frozen=True)
class Trained:
    """A data set in MVTec's layout and a run on it, calibrated; tests must not change either."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "parts"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def train(self) -> tuple[object, ...]:
        """The command."""
        small = ("--image-size", 128)  # its size is no test's point
        fast = ("--epochs", 8, "--train-precision", "fp32")
        return ("train", self.data, "-o", self.run, *fast, *small)

    @property
    def said(self) -> str:
        """What it printed."""
        return (self.folder / "said.txt").read_text(encoding="utf-8")


def train_once(folder: Path) -> None:
    """Makes a `Trained`: 24 good parts, 4 good and 10 defective test parts; the run can tell some
    of them apart."""
    made = Trained(folder)
    write_dataset(made.data, seed=3, train_good=24, test_good=4, per_defect=2)
    said = must(*made.train).out
    (folder / "said.txt").write_text(said, encoding="utf-8")
    run_calibrate(made.run, rate=None, images=None, as_json=True)
