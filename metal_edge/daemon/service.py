"""The daemon's life: proves the model, opens camera and broker, runs the line, leaves cleanly."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.daemon.bell import Bell
from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.clock import Clock, SystemClock
from metal_edge.daemon.commands import Commands
from metal_edge.daemon.frame_checks import FrameChecks
from metal_edge.daemon.line import Line, Parts, StopFlag
from metal_edge.daemon.line_commands import register
from metal_edge.daemon.messages import Identity, config_payload, model_payload, state_payload
from metal_edge.daemon.model import Model, Models, View
from metal_edge.daemon.publisher import Publisher
from metal_edge.daemon.reporter import Reporter
from metal_edge.daemon.rules import view_rules
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.daemon.triggers import TriggerQueue
from metal_edge.errors import ExitCode
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import GoldenResult, check_golden, load_runner, read_golden_image
from metal_edge.settings import CameraSettings, LineSettings
from metal_edge.settings.camera import ViewSettings

log = logging.getLogger(__name__)

# The first runs of a session allocate; the first part must not pay for it.
WARM_UP_RUNS = 3
# Leaves room for the part in hand within two seconds from SIGTERM to exit.
GOODBYE_S = 0.7


def run_daemon(settings: LineSettings) -> int:
    """Runs one line until SIGTERM, SIGINT, or the end of its pictures.

    SIGHUP is ignored: settings are read once, a restart takes a second.

    Returns:
        ExitCode.OK.

    Raises:
        MetalEdgeError: the line could not be armed; says what is missing and what to do.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    stop = StopFlag()
    notifier = Notifier(os.environ)
    with _signals(stop), ExitStack() as cleanup:
        line = _arm(settings, SystemClock(), stop, notifier, cleanup)
        if line is not None and not stop.requested():
            identity = line.serving.identity
            notifier.ready(f"inspecting with {identity.model_id}")
            log.info("line %s is armed", identity.topic_root)
            line.run()
        notifier.stopping()
        log.info("stopping")
    return ExitCode.OK


def _arm(
    settings: LineSettings, clock: Clock, stop: StopFlag, notifier: Notifier, cleanup: ExitStack
) -> Line | None:
    """Everything between the settings and a line that decides; None when told to stop.

    `cleanup` undoes it in reverse order: the broker hears `offline` before the cameras close.
    """
    session_id, golden_difference = str(uuid.uuid4()), 0.0
    models: dict[str, Model] = {}
    for camera in reversed((settings.camera, *settings.views)):
        model, golden = _load_model(settings, camera, session_id, cleanup)
        models[camera.camera_id], golden_difference = model, golden.worst_difference
        if stop.requested():
            return None
    views = []
    for settings_of_one in (settings.camera, *settings.views):
        views.append(_open_view(settings_of_one, models, clock, cleanup))
        if stop.requested():
            return None
    line, publisher = _connect(settings, (tuple(views), models), clock, stop, notifier)
    publisher.open()
    identity = line.serving.identity

    def say_goodbye() -> None:
        state = state_payload("offline", identity, clock.utc_ns(), ("stopped",))
        publisher.close(state, GOODBYE_S)

    cleanup.callback(say_goodbye)
    # Model and settings first: who sees `online` can look up what decides.
    utc_ns, bundle = clock.utc_ns(), line.serving.bundle
    publisher.retain("model", model_payload(bundle, identity, golden_difference, utc_ns))
    publisher.retain("config", config_payload(settings, identity, utc_ns))
    publisher.retain("state", state_payload("online", identity, utc_ns))
    return line


def _load_model(
    settings: LineSettings,
    camera: CameraSettings,
    session_id: str,
    cleanup: ExitStack,
) -> tuple[Model, GoldenResult]:
    """One view's model, proven by its golden images and warm."""
    path, regions = settings.bundle, settings.regions
    if isinstance(camera, ViewSettings):
        path, regions = camera.bundle, camera.regions
    bundle = Bundle.open(path)
    runner = cleanup.enter_context(load_runner(bundle, settings.runtime.threads))
    golden = check_golden(bundle, runner)
    _warm_up(runner)
    log.info("bundle %s reproduces its %d golden images", bundle.path, golden.images)
    inspections = [
        runner.run(read_golden_image(bundle, image.file)[None])[0] for image in bundle.golden.images
    ]
    model = Model(
        recipe="default",
        identity=_identity(settings, camera, bundle, session_id),
        bundle=bundle,
        runner=runner,
        rules=view_rules(bundle, regions, settings.decision.max_frame_age_ms, inspections),
    )
    return model, golden


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
    eyes: tuple[tuple[View, ...], Models],
    clock: Clock,
    stop: StopFlag,
    notifier: Notifier,
) -> tuple[Line, Publisher]:
    """Ties commands, queue, line and publisher together; nothing is connected yet."""
    (views, models), bell, commands = eyes, Bell(), Commands(clock)
    queue = TriggerQueue(settings.decision.trigger_queue, bell)
    identity = models[settings.camera.camera_id].identity
    publisher = Publisher(
        settings.mqtt,
        identity.topic_root,
        will=state_payload("offline", identity, None, ("connection lost",)),
        on_command=commands.handle,
        clock=clock,
    )
    reporter = Reporter(publisher, identity, clock)
    parts = Parts(
        settings=settings,
        views=views,
        models=models,
        publisher=publisher,
        reporter=reporter,
        queue=queue,
        bell=bell,
        notifier=notifier,
        clock=clock,
        stop=stop,
    )
    line = Line(parts)
    register(commands, line, parts)
    return line, publisher


def _identity(
    settings: LineSettings, camera: CameraSettings, bundle: Bundle, session_id: str
) -> Identity:
    manifest = bundle.manifest
    return Identity(
        topic_root=settings.station.topic_root,
        session_id=session_id,
        camera_id=camera.camera_id,
        model_id=manifest.name,
        model_version=manifest.version,
        model_sha256=bundle.digest,
        backend=f"{manifest.backend}-{manifest.precision}",
    )


def _warm_up(runner: Runner) -> None:
    image = np.zeros((1, *runner.input_shape), dtype=np.uint8)
    for _ in range(WARM_UP_RUNS):
        runner.run(image)


@contextmanager
def _signals(stop: StopFlag) -> Iterator[None]:
    """SIGTERM and SIGINT set the flag, SIGHUP does nothing; restored on the way out."""
    wanted = {signal.SIGTERM: stop.request, signal.SIGINT: stop.request}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
