"""The two measurements: what the daemon adds to a part's latency, and what rate it sustains."""

from __future__ import annotations

import signal
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Bundle
from metal_edge.runtime.load import load_runner
from tools.bench_daemon.rig import (
    CSubscriber,
    Daemon,
    Mosquitto,
    Subscriber,
    settings_text,
    wait_for,
)

TRIGGERS_HZ = 30
WARM_UP = 30  # decisions that do not count
SETTLE_S = 0.7  # after a pause, before the daemon's rate counts
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Added:
    """Milliseconds per decision, without inference.

    Attributes:
        total: from the capture callback to the subscriber.
        hand_over: from the callback until the payload is made, but for inference and `post`.
        post: from map to verdict.
        broker: from the payload's making to a subscriber in C: event note, JSON, socket, broker.
    """

    total: NDArray[np.float64]
    hand_over: NDArray[np.float64]
    post: NDArray[np.float64]
    broker: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sustained:
    """Rates in pictures per second, by turn, and the books of free run.

    Attributes:
        offered: pictures from the first heartbeat to the last, by the camera's own count.
        decided, dropped: in the same time, by the heartbeats' counts; a verdict on silence is
            none on a picture.
        beats: heartbeats whose books were compared, of which `wrong` did not add up.
    """

    bare: NDArray[np.float64]
    daemon: NDArray[np.float64]
    offered: int
    decided: int
    dropped: int
    beats: int
    wrong: int


def added_latency(folder: Path, bundle: Bundle, seconds: float) -> Added:
    """Triggers at 30 a second, as a PLC would send them, for so long."""
    folder.mkdir(parents=True, exist_ok=True)
    with Mosquitto(folder) as broker, Subscriber(broker.port, keep=False) as heard:
        size = bundle.manifest.preprocess
        options = f"options = {{ width = {size.source_width}, height = {size.source_height} }}"
        text = settings_text(bundle.path, broker.port, f'mode = "triggered"\n{options}')
        with CSubscriber(folder, broker.port) as plc, Daemon(folder, text) as daemon:
            daemon.armed(heard)
            count = WARM_UP + round(seconds * TRIGGERS_HZ)
            began = time.monotonic()
            for number in range(count):
                time.sleep(max(0.0, began + number / TRIGGERS_HZ - time.monotonic()))
                heard.trigger(number)
            wait_for(lambda: heard.decided >= count, "all decisions")
            daemon.signal(signal.SIGTERM)
            daemon.process.wait(10)
    return split(plc.decisions()[WARM_UP:])


def split(decisions: Sequence[tuple[int, dict[str, Any]]]) -> Added:
    """Takes inference out. Decisions without it (`unknown` on a missing frame) do not count."""
    rows = []
    for heard_ns, said in decisions:
        latency = said["latency_ms"]
        if latency.get("infer") is None or said["t_exposure_ns"] is None:
            continue
        made_ms = (said["t_publish_ns"] - said["t_exposure_ns"]) / 1e6
        broker_ms = (heard_ns - said["t_publish_ns"]) / 1e6
        hand_over_ms = made_ms - latency["infer"] - latency["post"]
        total_ms = made_ms + broker_ms - latency["infer"]
        rows.append((total_ms, hand_over_ms, latency["post"], broker_ms))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Added(*table.T)


def sustained_rate(
    folder: Path, bundle: Bundle, *, threads: int, turns: int, turn_s: float
) -> Sustained:
    """The daemon in free run and the bare engine in turns: the other one is held meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    size = bundle.manifest.preprocess
    frame = np.full((1, size.height, size.width, 3), 90, np.uint8)
    with load_runner(bundle, threads) as runner, Mosquitto(folder) as broker:
        bare_s = _bare_rate(lambda: runner.run(frame), turn_s)
        fps = min(1000.0, round(1.5 * bare_s + 5))
        options = f"options = {{ width = {size.source_width}, height = {size.source_height} }}"
        camera = f'mode = "latest"\nfps = {fps}\n{options}'
        text = settings_text(bundle.path, broker.port, camera, f"[runtime]\nthreads = {threads}")
        bare, daemons = [], []
        with Subscriber(broker.port) as heard, Daemon(folder, text) as daemon:
            daemon.armed(heard)
            for _ in range(turns):
                daemon.signal(signal.SIGSTOP)
                bare.append(_bare_rate(lambda: runner.run(frame), turn_s))
                daemon.signal(signal.SIGCONT)
                time.sleep(SETTLE_S)
                daemons.append(_heard_rate(heard, turn_s))
    return _books(heard, np.array(bare), np.array(daemons))


def _bare_rate(run: Callable[[], object], seconds: float) -> float:
    run()
    began, count = time.monotonic(), 0
    while (now := time.monotonic()) - began < seconds:
        run()
        count += 1
    return count / (now - began)


def _heard_rate(heard: Subscriber, seconds: float) -> float:
    first, began = len(heard.decisions), time.monotonic()
    time.sleep(seconds)
    return (len(heard.decisions) - first) / (time.monotonic() - began)


def _books(heard: Subscriber, bare: NDArray[np.float64], daemon: NDArray[np.float64]) -> Sustained:
    """A heartbeat comes between two parts, so what it counts must add up to the camera's count.

    From the first heartbeat on whose last decision was heard: a decision that the daemon made
    just before it was held may not have been sent, and no frame is known for it.
    """
    frames = {said["seq"]: _frame(said) for _, said in heard.decisions if said["frame_id"]}
    beats = [beat for beat in heard.heartbeats if beat["last_decision_seq"] in frames]
    blind = sorted(said["seq"] for _, said in heard.decisions if not said["frame_id"])
    books = [
        (
            frames[beat["last_decision_seq"]],
            beat["last_decision_seq"] - bisect_right(blind, beat["last_decision_seq"]),
            beat["frames_dropped"],
        )
        for beat in beats
    ]
    table = np.array(books, dtype=np.int64)
    grown = table - table[0]
    wrong = int(np.count_nonzero(grown[:, 0] != grown[:, 1] + grown[:, 2]))
    offered, decided, dropped = (int(value) for value in grown[-1])
    return Sustained(bare, daemon, offered, decided, dropped, len(beats), wrong)


def _frame(said: dict[str, Any]) -> int:
    """The reader names frames `camera-number`."""
    return int(said["frame_id"].rpartition("-")[2])
