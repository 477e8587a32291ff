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
from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.clock import Clock, SystemClock
from metal_edge.daemon.commands import Commands
from metal_edge.daemon.decision import Rules
from metal_edge.daemon.desk import TriggerDesk
from metal_edge.daemon.line import Line, Parts, StopFlag
from metal_edge.daemon.messages import Identity, config_payload, model_payload, state_payload
from metal_edge.daemon.publisher import Publisher
from metal_edge.daemon.reporter import Reporter
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.daemon.triggers import TriggerQueue
from metal_edge.errors import ExitCode
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import check_golden, load_runner
from metal_edge.settings import CameraMode, LineSettings

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
        parts = _arm(settings, SystemClock(), stop, notifier, cleanup)
        if parts is not None and not stop.requested():
            notifier.ready(f"inspecting with {parts.identity.model_id}")
            log.info("line %s is armed", parts.identity.topic_root)
            Line(parts).run()
        notifier.stopping()
        log.info("stopping")
    return ExitCode.OK


def _arm(
    settings: LineSettings, clock: Clock, stop: StopFlag, notifier: Notifier, cleanup: ExitStack
) -> Parts | None:
    """Everything between the settings and a line that decides; None when told to stop.

    `cleanup` undoes it in reverse order: the broker hears `offline` before the camera closes.
    """
    bundle = Bundle.open(settings.bundle)
    runner = cleanup.enter_context(load_runner(bundle, settings.runtime.threads))
    golden = check_golden(bundle, runner)
    _warm_up(runner)
    log.info("bundle %s reproduces its %d golden images", bundle.path, golden.images)
    if stop.requested():
        return None
    camera = create_camera(settings.camera, clock)
    cleanup.callback(camera.close)
    camera.open()
    if stop.requested():
        return None
    identity, rules = _identity(settings, bundle), _rules(settings, bundle)
    publisher, reporter, queue = _connect(settings, identity, rules, clock)
    parts = Parts(
        settings=settings,
        bundle=bundle,
        runner=runner,
        camera=camera,
        publisher=publisher,
        reporter=reporter,
        queue=queue,
        rules=rules,
        identity=identity,
        notifier=notifier,
        clock=clock,
        stop=stop,
    )
    cleanup.callback(_say_goodbye, parts)
    _introduce(parts, golden.worst_difference)
    return parts


def _connect(
    settings: LineSettings, identity: Identity, rules: Rules, clock: Clock
) -> tuple[Publisher, Reporter, TriggerQueue]:
    """Ties trigger desk, queue and publisher together, and connects."""
    queue = TriggerQueue(settings.decision.trigger_queue)
    commands = Commands(clock)
    publisher = Publisher(
        settings.mqtt,
        identity.topic_root,
        will=state_payload("offline", identity, None, ("connection lost",)),
        on_command=commands.handle,
        clock=clock,
    )
    reporter = Reporter(publisher, identity, clock)
    desk = TriggerDesk(
        queue,
        report=reporter.report,
        rules=rules,
        clock=clock,
        deadline_ms=settings.decision.deadline_ms,
        triggered=settings.camera.mode is CameraMode.TRIGGERED,
    )
    commands.register("trigger", desk.handle)
    publisher.open()
    return publisher, reporter, queue


def _rules(settings: LineSettings, bundle: Bundle) -> Rules:
    source = bundle.manifest.preprocess
    size = None
    if source.source_width is not None and source.source_height is not None:
        size = (source.source_width, source.source_height)
    max_age_ns = round(settings.decision.max_frame_age_ms * 1e6)
    return Rules(bundle.thresholds.score, max_age_ns, size)


def _identity(settings: LineSettings, bundle: Bundle) -> Identity:
    manifest = bundle.manifest
    return Identity(
        topic_root=settings.station.topic_root,
        session_id=str(uuid.uuid4()),
        camera_id=settings.camera.camera_id,
        model_id=manifest.name,
        model_version=manifest.version,
        model_sha256=bundle.digest,
        backend=f"{manifest.backend}-{manifest.precision}",
    )


def _warm_up(runner: Runner) -> None:
    image = np.zeros((1, *runner.input_shape), dtype=np.uint8)
    for _ in range(WARM_UP_RUNS):
        runner.run(image)


def _introduce(parts: Parts, golden_difference: float) -> None:
    """Model and settings first: who sees `online` can look up what decides."""
    utc_ns = parts.clock.utc_ns()
    publisher, identity = parts.publisher, parts.identity
    publisher.retain("model", model_payload(parts.bundle, identity, golden_difference, utc_ns))
    publisher.retain("config", config_payload(parts.settings, identity, utc_ns))
    publisher.retain("state", state_payload("online", identity, utc_ns))


def _say_goodbye(parts: Parts) -> None:
    state = state_payload("offline", parts.identity, parts.clock.utc_ns(), ("stopped",))
    parts.publisher.close(state, GOODBYE_S)


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
