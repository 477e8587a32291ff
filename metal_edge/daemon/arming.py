"""Everything between a line's settings and a line that decides, and the way back."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from metal_edge.daemon.bell import Bell
from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.clock import Clock
from metal_edge.daemon.commands import Commands
from metal_edge.daemon.frame_checks import FrameChecks
from metal_edge.daemon.line import Line, Parts, StopFlag
from metal_edge.daemon.line_commands import register
from metal_edge.daemon.messages import config_payload, model_payload, state_payload
from metal_edge.daemon.model import Models, View
from metal_edge.daemon.proving import DEFAULT, prove, release
from metal_edge.daemon.publisher import Publisher
from metal_edge.daemon.records import Records, open_records
from metal_edge.daemon.reporter import Reporter
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.daemon.triggers import TriggerQueue
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
    """

    clock: Clock
    stop: StopFlag
    engines: Engines
    notifier: Notifier
    phase: Callable[[str], None]
    patient: bool = False


def arm(settings: LineSettings, tools: Tools, cleanup: ExitStack) -> Line | None:
    """Proves the models, opens cameras and broker; None when told to stop meanwhile.

    `cleanup` undoes it in reverse order: the broker hears `offline` before the cameras close.

    Raises:
        MetalEdgeError: the line cannot be armed; says what is missing and what to do.
    """
    tools.phase(f"loading {settings.bundle.name}")
    proven = prove(settings, DEFAULT, str(uuid.uuid4()), tools.engines, tools.stop.requested)
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
    line, publisher = _connect(settings, tuple(views), proven.models, records, tools)
    cleanup.callback(_say_goodbye, line, publisher, tools.clock)
    cleanup.callback(records.finish)  # the last events wait for their pictures
    identity, utc_ns = line.serving.identity, tools.clock.utc_ns()
    difference = proven.golden_difference[identity.camera_id]
    # Model and settings first: who sees `online` can look up what decides.
    publisher.retain("model", model_payload(line.serving.bundle, identity, difference, utc_ns))
    publisher.retain("config", config_payload(settings, identity, utc_ns))
    publisher.retain("state", state_payload("online", identity, utc_ns))
    return line


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
    settings: LineSettings,
    views: tuple[View, ...],
    models: Models,
    records: Records,
    tools: Tools,
) -> tuple[Line, Publisher]:
    """Ties commands, queue, line and publisher together, and connects."""
    bell, commands = Bell(), Commands(tools.clock)
    identity = models[settings.camera.camera_id].identity
    publisher = Publisher(
        settings.mqtt,
        identity.topic_root,
        will=state_payload("offline", identity, None, ("connection lost",)),
        on_command=commands.handle,
        clock=tools.clock,
        outbox=records.outbox,
    )
    parts = Parts(
        settings=settings,
        views=views,
        models=models,
        publisher=publisher,
        reporter=Reporter(publisher, identity, tools.clock, records.pictures),
        queue=TriggerQueue(settings.decision.trigger_queue, bell),
        bell=bell,
        notifier=tools.notifier,
        clock=tools.clock,
        stop=tools.stop,
    )
    line = Line(parts)
    register(commands, line, parts)
    try:
        publisher.open()
    except UnavailableError as error:
        if not tools.patient:
            raise
        log.warning("%s; going on without, and trying again", error)
    return line, publisher


def _say_goodbye(line: Line, publisher: Publisher, clock: Clock) -> None:
    state = state_payload("offline", line.serving.identity, clock.utc_ns(), ("stopped",))
    publisher.close(state, GOODBYE_S)
