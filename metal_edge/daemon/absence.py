"""What the broker hears of a line that cannot be armed."""

from __future__ import annotations

import logging
import uuid

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.mqtt.messages import Identity, state_payload
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.errors import UnavailableError
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

GOODBYE_S = 0.7


def announce_absence(settings: LineSettings, problem: str, clock: Clock) -> None:
    """Publishes `state` = offline with its reason, and leaves again.

    Args:
        problem: in general words; an error's text may hold a camera's password.
    """
    root = settings.station.topic_root
    nobody = Identity(root, str(uuid.uuid4()), settings.camera.camera_id, "", "", "", "")
    state = state_payload("offline", nobody, clock.utc_ns(), (problem,))
    publisher = Publisher(
        settings.mqtt,
        root,
        will=state,
        on_command=lambda verb, payload, retained, send: None,
        clock=clock,
    )
    try:
        publisher.open()
    except UnavailableError as error:
        log.info("the broker does not hear of it: %s", error)
        return
    publisher.close(state, GOODBYE_S)
