"""The topics below a station's root: how each is published, and for how long it matters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """How a message travels. `expiry_s` is MQTT's message expiry interval; None: for ever."""

    name: str
    qos: int
    retain: bool = False
    expiry_s: int | None = None


# QoS 0: a verdict that waited would reject the wrong part.
DECISION = Topic("decision", qos=0, expiry_s=1)
EVENT = Topic("event", qos=1, expiry_s=7 * 24 * 3600)
HEARTBEAT = Topic("heartbeat", qos=1, expiry_s=1)
STATE = Topic("state", qos=1, retain=True)
MODEL = Topic("model", qos=1, retain=True)
CONFIG = Topic("config", qos=1, retain=True)
RETAINED = {topic.name: topic for topic in (STATE, MODEL, CONFIG)}

# On the sender's response topic; below our own root only under this level.
REPLY = Topic("reply", qos=1, expiry_s=10)

# What others publish; the expiry is theirs to set.
COMMAND = Topic("cmd", qos=1, expiry_s=10)
ECHO = Topic("echo", qos=0)

# Of a command, in characters and bytes.
MAX_RESPONSE_TOPIC = 256
MAX_CORRELATION = 256


def may_answer(root: str, topic: str) -> bool:
    """Whether a sender may have its answer there.

    It must not make us speak on our own topics, where a PLC believes us.
    """
    if not 0 < len(topic) <= MAX_RESPONSE_TOPIC or topic.startswith("$"):
        return False
    if any(character in topic for character in "+#\0"):
        return False
    own = topic == root or topic.startswith(root + "/")
    return not own or topic.startswith(f"{root}/{REPLY.name}/")
