"""A line in this process: the real loop and threads between a scripted camera and no broker."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.daemon.cameras import CameraTimeoutError
from metal_edge.daemon.cameras.frame_checks import FrameChecks
from metal_edge.daemon.clock import Clock, SystemClock
from metal_edge.daemon.deciding.decision import Rules
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.commands import register
from metal_edge.daemon.line.line import Line, Parts, StopFlag
from metal_edge.daemon.line.model import Model, View
from metal_edge.daemon.line.reporter import Reporter
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.commands import Commands
from metal_edge.daemon.mqtt.messages import Identity
from metal_edge.daemon.mqtt.publisher import BrokerHealth, Publisher
from metal_edge.daemon.records.evidence import Case, EvidenceStats, EvidenceStore
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.domain import Frame, Inspection, Preprocess
from metal_edge.runtime.base import Runner
from metal_edge.settings import FrameCheckSettings, LineSettings
from support.broker import wait_until

SIZE = 8
GOOD, BAD = 50, 200  # grey levels; the fake model's score is level / 255, the threshold 0.5


class SteppingClock(SystemClock):
    """The system's clock, whose wall side can be made to step."""

    def __init__(self) -> None:
        self.step_ns = 0

    def utc_ns(self) -> int:
        return super().utc_ns() + self.step_ns


class ScriptedCamera:
    """Gives what the test puts into it.

    An int is a frame of that grey level, exposed when it is grabbed; a Frame or an exception is
    itself; an Event holds the grab until it is set, whatever the time limit was.
    """

    live = False

    def __init__(self, camera_id: str, clock: Clock, always: int | None = None) -> None:
        self.camera_id = camera_id
        self.script: queue.Queue[Any] = queue.Queue()
        self.always = always
        self.triggered: list[str | None] = []
        self.seq = 0
        self._clock = clock

    def frame(self, level: int, seq: int | None = None, age_ns: int = 0) -> Frame:
        self.seq = self.seq + 1 if seq is None else seq
        image = np.full((SIZE, SIZE, 3), level, np.uint8)
        t_ns, name = self._clock.mono_ns() - age_ns, f"{self.camera_id}-{self.seq}"
        return Frame(image, self.seq, self.camera_id, name, t_ns, self._clock.utc_ns())

    def open(self) -> None: ...

    def close(self) -> None: ...

    def trigger(self, part_id: str | None) -> None:
        self.triggered.append(part_id)

    def grab(self, timeout_s: float) -> Frame:
        try:
            item = self.script.get(timeout=0 if self.always is not None else timeout_s)
        except queue.Empty as error:
            if self.always is None:
                raise CameraTimeoutError("nothing came", "") from error
            item = self.always
        if isinstance(item, threading.Event):
            item.wait(20)
            return self.grab(timeout_s)
        if isinstance(item, BaseException):
            raise item
        return item if isinstance(item, Frame) else self.frame(item)


class LevelRunner:
    """Scores the mean level. `gate`, where there is one, holds each run until it is set."""

    input_shape = (SIZE, SIZE, 3)

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias
        self.gate: threading.Event | None = None
        self.inside = threading.Event()
        self.error: Exception | None = None

    def run(self, images: Any) -> list[Inspection]:
        self.inside.set()
        if self.gate is not None:
            self.gate.wait(20)
        if self.error is not None:
            raise self.error
        score = float(images.mean() / 255 + self.bias)
        return [Inspection(np.full((2, 2), score, np.float32), score)]


class SilentBroker:
    """Remembers what would have been published."""

    def __init__(self) -> None:
        self.decisions: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.beats: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.problems: tuple[str, ...] = ()

    def decision(self, payload: dict[str, Any], encoded: bytes) -> bool:
        assert json.loads(encoded) == payload
        self.decisions.append(payload)
        return True

    def begin_event(self, event_id: str, encoded: bytes) -> None: ...

    def event(self, event_id: str, encoded: bytes) -> None:
        self.events.append(json.loads(encoded))

    def heartbeat(self, payload: dict[str, Any]) -> None:
        self.beats.append(payload)

    def retain(self, name: str, payload: dict[str, Any]) -> None:
        assert name == "state"
        self.states.append(payload)

    def pump(self) -> None: ...

    def health(self) -> BrokerHealth:
        return BrokerHealth(True, 0.0, 0, 0, 0, self.problems)


def model(
    runner: LevelRunner,
    camera_id: str = "cam0",
    *,
    recipe: str = "default",
    threshold: float = 0.5,
    max_age_ms: int = 1000,
) -> Model:
    """A model around a runner; its bundle knows no more than the picture's size."""
    bundle = SimpleNamespace(manifest=SimpleNamespace(preprocess=Preprocess(8, 8, 8, 8)))
    return Model(
        recipe=recipe,
        identity=Identity("root", "session", camera_id, recipe, "1", "0" * 64, "none"),
        bundle=cast(Bundle, bundle),
        runner=cast(Runner, runner),
        rules=Rules(threshold, max_age_ms * 1_000_000, (SIZE, SIZE)),
    )


class Rig:
    """A line with everything around it; `with` runs it in a thread."""

    def __init__(
        self,
        cameras: Mapping[str, ScriptedCamera] | None = None,
        clock: Clock | None = None,
        *,
        pictures: bool = False,
        max_age_ms: int = 1000,
        **sections: Any,
    ) -> None:
        self.clock = clock or SystemClock()
        self.cameras = dict(cameras or {"cam0": ScriptedCamera("cam0", self.clock, GOOD)})
        first, *others = self.cameras
        values = {
            "bundle": Path("unused"),
            "camera": {"kind": "scripted", "camera_id": first, "timeout_s": 5},
            "views": tuple({"kind": "scripted", "camera_id": o, "bundle": "u"} for o in others),
            "decision": {"deadline_ms": 5000},
            "heartbeat_hz": 50,
        }
        for name, section in sections.items():
            known = values.get(name)
            values[name] = {**known, **section} if isinstance(known, dict) else section
        self.settings = LineSettings.model_validate(values)
        self.runners = {camera_id: LevelRunner() for camera_id in self.cameras}
        self.models = {n: model(r, n, max_age_ms=max_age_ms) for n, r in self.runners.items()}
        self.broker = SilentBroker()
        self.kept: list[Case] = []
        self.stop = StopFlag()
        bell = Bell()
        publisher = cast(Publisher, self.broker)
        identity = self.models[first].identity
        self.parts = Parts(
            settings=self.settings,
            views=tuple(self._view(name) for name in self.cameras),
            models=self.models,
            publisher=publisher,
            reporter=Reporter(publisher, identity, self.clock, self._store() if pictures else None),
            queue=TriggerQueue(self.settings.decision.trigger_queue, bell),
            bell=bell,
            notifier=Notifier({}),
            clock=self.clock,
            stop=self.stop,
        )
        self.line = Line(self.parts)
        self.commands = Commands(self.clock)
        register(self.commands, self.line, self.parts)
        self.answers: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self.line.run, name="line")

    @property
    def camera(self) -> ScriptedCamera:
        return next(iter(self.cameras.values()))

    @property
    def runner(self) -> LevelRunner:
        return next(iter(self.runners.values()))

    @property
    def decisions(self) -> list[dict[str, Any]]:
        return self.broker.decisions

    def command(self, verb: str, payload: str = "{}") -> None:
        """One command, as if from the broker's thread; its answer comes into `answers`."""
        self.commands.handle(verb, payload.encode(), False, self.answers.append)

    def trigger(self, trigger_id: str, part_id: str = "p", **more: Any) -> None:
        fields = {"trigger_id": trigger_id, "part_id": part_id, **more}
        text = ", ".join(f'"{k}": {_json(v)}' for k, v in fields.items())
        self.command("trigger", f"{{{text}}}")

    def verdicts(self, count: int) -> list[tuple[str, str, str]]:
        """The first `count` decisions, as trigger, verdict, reason."""
        wait_until(lambda: len(self.decisions) >= count, f"{count} decisions")
        return [(d["trigger_id"], d["verdict"], d["reason"]) for d in self.decisions[:count]]

    def beat(self, wanted: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """A heartbeat that is sent after this call and is wanted."""
        begun = len(self.broker.beats)

        def found() -> dict[str, Any] | None:
            return next((b for b in self.broker.beats[begun:] if wanted(b)), None)

        return cast(dict[str, Any], wait_until(found, what))

    def end(self) -> None:
        """Asks the line to stop and waits until it has."""
        self.stop.request()
        self.parts.bell.ring()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the line does not stop"

    def join(self) -> None:
        """Waits until the line has ended by itself."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the line does not end"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        for runner in self.runners.values():
            if runner.gate is not None:
                runner.gate.set()
        self.end()

    def _store(self) -> EvidenceStore:
        """Keeps nothing by itself, and in memory."""

        def offer(case: Case, done: Callable[[None], None]) -> None:
            self.kept.append(case)
            done(None)

        stats = EvidenceStats(0, 0, 0, None)
        fake = SimpleNamespace(wants=lambda verdict: False, offer=offer, stats=lambda: stats)
        return cast(EvidenceStore, fake)

    def _view(self, name: str) -> View:
        model = self.models[name]
        return View(
            camera=self.cameras[name],
            camera_id=name,
            bundle=model.bundle,
            runner=model.runner,
            rules=model.rules,
            checks=FrameChecks(FrameCheckSettings(), live=False),
        )


def _json(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
