"""Everything between a line's settings and a line that decides, and the way back."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.cameras.frame_checks import FrameChecks
from metal_edge.daemon.changeover.changeover import Changeover, Outside, Serving
from metal_edge.daemon.changeover.proving import prove, release
from metal_edge.daemon.changeover.recipe_memory import RecipeMemory
from metal_edge.daemon.clock import Clock
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.commands import register
from metal_edge.daemon.line.line import Line, Parts, StopFlag
from metal_edge.daemon.line.model import Models, View
from metal_edge.daemon.line.reporter import Reporter
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.commands import Commands
from metal_edge.daemon.mqtt.messages import config_payload, model_payload, state_payload
from metal_edge.daemon.mqtt.publisher import Copy, Publisher
from metal_edge.daemon.mqtt.sparkplug import sparkplug_copies
from metal_edge.daemon.observing.log_writer import log_problems
from metal_edge.daemon.observing.metrics import Endpoints
from metal_edge.daemon.records.places import Records, open_records, state_folder
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.errors import UnavailableError
from metal_edge.runtime.shared import Engines
from metal_edge.settings import CameraSettings, LineSettings

log = logging.getLogger(__name__)

# Leaves room for the part in hand within two seconds from SIGTERM to exit.
GOODBYE_S = 0.7


@dataclass(frozen=True, slots=True)
class Tools:
    """What a line is given by the process it lives in.

    Attributes:
        engines: shared with the other lines.
        notifier: takes the line's signs of life and its status.
        phase: called with what is being done, in a few words for people.
        patient: a broker that is not there yet degrades the line instead of failing it.
        endpoints: for metrics, shared with the other lines.
    """

    clock: Clock
    stop: StopFlag
    engines: Engines
    notifier: Notifier
    phase: Callable[[str], None]
    patient: bool = False
    endpoints: Endpoints = field(default_factory=Endpoints)


@dataclass(frozen=True, slots=True, eq=False)
class Armed:
    """A line that is ready to run, and what changes its models while it does."""

    line: Line
    changeover: Changeover


def arm(settings: LineSettings, tools: Tools, cleanup: ExitStack) -> Armed | None:
    """Proves the models, opens cameras and broker; None when told to stop meanwhile.

    `cleanup` undoes it in reverse order: the broker hears `offline` before the cameras close.

    Raises:
        MetalEdgeError: the line cannot be armed; says what is missing and what to do.
    """
    memory = RecipeMemory(state_folder(settings, os.environ))
    recipe = memory.read(settings)
    tools.phase(f"loading recipe {recipe}")
    proven = prove(settings, recipe, str(uuid.uuid4()), tools.engines, tools.stop.requested)
    if proven is None:
        return None
    cleanup.callback(release, proven.models)
    views = []
    for camera_settings in (settings.camera, *settings.views):
        if tools.stop.requested():
            return None
        tools.phase(f"opening camera {camera_settings.camera_id}")
        views.append(_open_view(camera_settings, proven.models, tools.clock, cleanup))
    if tools.stop.requested():
        return None
    tools.phase("connecting to the broker")
    records = open_records(settings, tools.clock, os.environ, cleanup)
    serving = Serving(settings, recipe, proven)
    session_id = serving.first.identity.session_id
    copies = sparkplug_copies(settings, session_id, tools.clock, cleanup)
    metrics = tools.endpoints.join(settings, tools.clock, cleanup)
    copies, note = (*copies, *metrics.copies), metrics.problem
    armed, publisher = _connect(
        serving, tuple(views), records, memory, tools, copies=copies, note=note
    )
    cleanup.callback(armed.changeover.close)
    cleanup.push(partial(_say_goodbye, armed.line, publisher, tools.clock))
    cleanup.callback(records.finish)  # the last events wait for their pictures
    _introduce(serving, publisher, tools.clock)
    identity = serving.first.identity
    publisher.retain("state", state_payload("online", identity, tools.clock.utc_ns()))
    return armed


def _introduce(serving: Serving, publisher: Publisher, clock: Clock) -> None:
    """Model and settings, before the state: who sees `online` can look up what decides."""
    first, utc_ns = serving.first, clock.utc_ns()
    difference = serving.proven.golden_difference[first.identity.camera_id]
    model = model_payload(first.bundle, first.identity, difference, utc_ns, serving.recipe)
    publisher.retain("model", model)
    publisher.retain("config", config_payload(serving.settings, first.identity, utc_ns))


def _open_view(settings: CameraSettings, models: Models, clock: Clock, cleanup: ExitStack) -> View:
    camera = create_camera(settings, clock)
    cleanup.callback(camera.close)
    camera.open()
    model = models[settings.camera_id]
    return View(
        camera=camera,
        camera_id=settings.camera_id,
        bundle=model.bundle,
        runner=model.runner,
        rules=model.rules,
        checks=FrameChecks(settings.checks, camera.live),
    )


def _connect(
    serving: Serving,
    views: tuple[View, ...],
    records: Records,
    memory: RecipeMemory,
    tools: Tools,
    *,
    copies: tuple[Copy, ...],
    note: str | None,
) -> tuple[Armed, Publisher]:
    """Ties commands, queue, line, changeover and publisher together, and connects."""
    bell, commands = Bell(), Commands(tools.clock)
    settings, identity = serving.settings, serving.first.identity
    publisher = Publisher(
        settings.mqtt,
        identity.topic_root,
        will=state_payload("offline", identity, None, ("connection lost",)),
        on_command=commands.handle,
        clock=tools.clock,
        outbox=records.outbox,
        copies=copies,
    )

    def notes() -> tuple[str, ...]:
        return (*changeover.problems(), *(() if note is None else (note,)), *log_problems())

    def told(now: Serving) -> None:
        line.take_settings(now.settings)
        desk.budget(now.settings.decision, now.settings.gate)
        _introduce(now, publisher, tools.clock)

    parts = Parts(
        settings=settings,
        views=views,
        models=serving.proven.models,
        publisher=publisher,
        reporter=Reporter(publisher, identity, tools.clock, records.pictures),
        queue=TriggerQueue(settings.decision.trigger_queue, bell),
        bell=bell,
        notifier=tools.notifier,
        clock=tools.clock,
        stop=tools.stop,
        notes=notes,
    )
    line = Line(parts)
    outside = Outside(
        engines=tools.engines,
        told=told,
        store=memory.write,
        stopping=tools.stop.requested,
    )
    changeover = Changeover(serving, line, outside)
    desk = register(commands, line, parts)
    commands.register("recipe", changeover.recipe)
    commands.register("golden-check", changeover.golden_check)
    try:
        publisher.open()
    except UnavailableError as error:
        if not tools.patient:
            raise
        log.warning("%s; going on without, and trying again", error)
    return Armed(line, changeover), publisher


def _say_goodbye(
    line: Line,
    publisher: Publisher,
    clock: Clock,
    kind: type[BaseException] | None,
    *error: object,
) -> None:
    """An exit callback of `cleanup`: it hears of the exception that ended the line."""
    del error
    why = "stopped" if kind is None else "failed"
    state = state_payload("offline", line.serving.identity, clock.utc_ns(), (why,))
    publisher.close(state, GOODBYE_S)
