"""`metal-edge demo`: the other commands in order, then a line that runs on their result."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metal_edge.cli.console import progress, say, say_result
from metal_edge.data import load_dataset
from metal_edge.demo.dataset import write_dataset
from metal_edge.demo.line import LinePlan, run_line
from metal_edge.demo.render import PartSequence
from metal_edge.demo.summary import LineSummary, as_text, read_gate_log, summarise
from metal_edge.errors import ExitCode, MetalEdgeError, SettingsError

TRAIN_GOOD, TEST_GOOD, PER_DEFECT = 560, 50, 10
HELD_OUT = 0.35  # enough that a guarantee of 2 % survives one odd good part
DEFECT_RATE = 0.2
PERIOD_MS, GATE_DELAY_MS = 250.0, 200.0
WANTED_RATE = 0.02


@dataclass(frozen=True)
class Scene:
    """What stands under the camera: simulated parts, or real pictures."""

    dataset: Path
    camera_toml: str
    part_ids: tuple[str, ...]
    truth: Callable[[str], str | None]
    train_options: tuple[str, ...]
    rate: float | None


def run_demo(out: Path, data: Path | None, parts: int, minutes: float, seed: int) -> int:
    """Everything from pictures to the gate; returns the exit code."""
    start = time.monotonic()
    out = out / ("simulator" if data is None else data.resolve().name)
    scene = _simulated(out, parts, seed) if data is None else _pictures(out, data, parts, seed)
    run, bundle = out / "run", out / "bundle"
    rate = [] if scene.rate is None else ["--false-reject-rate", f"{scene.rate:g}"]
    options = ("--max-minutes", f"{minutes:g}", *scene.train_options)
    _metal_edge("train", scene.dataset, "-o", run, *options)
    _metal_edge("calibrate", run, *rate)
    _metal_edge("build-engine", run, "--precision", "int8", "--no-sweep", "-o", bundle, *rate)
    report = out / "report"
    _metal_edge("evaluate", bundle, "--data", scene.dataset, "-o", report)
    say("")
    say(
        f"starting mosquitto, `metal-edge run` and the PLC simulator on {len(scene.part_ids)} parts"
    )
    plan = LinePlan(
        out / "line", bundle, scene.camera_toml, scene.part_ids, PERIOD_MS, GATE_DELAY_MS
    )
    with progress("the line runs") as advance:
        run_line(plan, lambda done, total: advance(done, total, ""))
    summary = summarise(read_gate_log(plan.gate_log), scene.truth)
    (out / "summary.json").write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
    say_result(_closing(summary, out, report, bundle, plan.gate_log, time.monotonic() - start))
    return _exit_code(summary, len(scene.part_ids))


def _exit_code(summary: LineSummary, expected: int) -> int:
    """Non-zero when a part went through unproven, or the log lacks parts."""
    if summary.unproven or summary.parts != expected:
        say(
            f"metal-edge: error: {summary.unproven} parts were let through without a pass of"
            f" their own in time, {expected - summary.parts} are missing in the gate log"
        )
        return ExitCode.SOFTWARE
    return ExitCode.OK


def _closing(
    summary: LineSummary, out: Path, report: Path, bundle: Path, gate_log: Path, seconds: float
) -> str:
    rows = [
        "",
        "The line has run. Parts it had never seen:",
        *(f"  {line}" for line in as_text(summary).splitlines()),
        "",
        f"  report    {report / 'report.html'}",
        f"  gallery   {report / 'gallery.png'}",
        f"  bundle    {bundle}",
        f"  gate log  {gate_log}",
        f"  summary   {out / 'summary.json'}",
        f"  took      {seconds:.0f} s",
    ]
    return "\n".join(rows)


def _metal_edge(*arguments: object) -> None:
    """Runs a sub-command as a user would, its output on this terminal."""
    words = [str(word) for word in arguments]
    say("")
    say("$ metal-edge " + " ".join(words))
    done = subprocess.run([sys.executable, "-m", "metal_edge", *words], check=False)
    if done.returncode == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise MetalEdgeError(
            f"metal-edge {words[0]} ended with exit code {done.returncode}", "see its message above"
        )


def _simulated(out: Path, parts: int, seed: int) -> Scene:
    """A rendered training folder, and a camera above further parts of the same line."""
    dataset = out / f"images-{seed}"
    if not dataset.is_dir():
        with progress("rendering training pictures") as advance:
            write_dataset(
                dataset,
                seed,
                TRAIN_GOOD,
                TEST_GOOD,
                PER_DEFECT,
                lambda done, total: advance(done, total, ""),
            )
    sequence = PartSequence(seed, defect_rate=DEFECT_RATE)
    camera = f'kind = "simulator"\n[camera.options]\nseed = {seed}\ndefect_rate = {DEFECT_RATE:g}\n'
    return Scene(
        dataset,
        camera,
        tuple(sequence.part_id(index) for index in range(parts)),
        lambda part_id: sequence.defect_of(sequence.index_of(part_id)),
        ("--held-out", f"{HELD_OUT:g}"),
        WANTED_RATE,
    )


def _pictures(out: Path, data: Path, parts: int, seed: int) -> Scene:
    """Real pictures: the set's training part to train on, its shuffled test part as the camera.

    The camera folder holds links whose names are part ids that do not tell what they show.
    """
    samples = load_dataset(data.resolve()).test
    if not samples:
        raise SettingsError(
            f"{data} has no test pictures for the camera",
            "give a folder with train/good, test/good and test/<defect>",
        )
    order = np.random.default_rng(seed).permutation(len(samples))[:parts]
    camera = out / "camera"
    camera.mkdir(parents=True, exist_ok=True)
    for old in camera.iterdir():
        old.unlink()
    truth: dict[str, str | None] = {}
    for number, index in enumerate(order):
        sample = samples[index]
        tag = hashlib.sha256(f"{seed}:{sample.path.name}".encode()).hexdigest()[:6]
        part_id = f"P-{number:06d}-{tag}"
        (camera / f"{part_id}{sample.path.suffix}").symlink_to(sample.path)
        truth[part_id] = None if sample.good else sample.label
    toml = f'kind = "folder"\nuri = {json.dumps(str(camera.resolve()))}\n'
    return Scene(data.resolve(), toml, tuple(truth), _lookup(truth), (), None)


def _lookup(truth: Mapping[str, str | None]) -> Callable[[str], str | None]:
    return lambda part_id: truth[part_id]
