"""What a line may do, and what changes that: one table. Pure.

Two of the states let parts pass. A fault, a new model, or being armed again leads through
`held`, where parts are inspected but not passed, until the line was seen to be able to inspect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType

from metal_edge.daemon.deciding.decision import Reason
from metal_edge.domain import Decision, Verdict


class State(StrEnum):
    """Of one line."""

    STARTING = "starting"  # model, camera and broker are being proven
    ARMED = "armed"
    DEGRADED = "degraded"  # able to inspect, but something around it is wrong
    HELD = "held"  # not seen to be able to inspect
    DISARMED = "disarmed"  # by command
    CHANGING = "changing"  # one model is being taken out for another
    STOPPING = "stopping"


class Event(StrEnum):
    """What happens to a line.

    WELL, PROBLEM and FAULT are observations, told at every heartbeat as things stand; the others
    happen once.
    """

    READY = "ready"  # everything was proven: golden images, camera, broker
    WELL = "well"  # able to inspect, no problem known
    PROBLEM = "problem"  # able to inspect, but the broker, the disk or the like is not well
    FAULT = "fault"  # not able to inspect: camera or inference fail again and again
    DISARM = "disarm"
    ARM = "arm"
    CHANGE = "change"  # the new model is proven; the old one stops deciding
    CHANGED = "changed"  # the new model decides
    CHANGE_FAILED = "change_failed"  # the old model decides again
    STOP = "stop"  # after the part in hand


_S, _E = State, Event

# Rows: state; columns: event. Every pair is here, so that none is decided by accident.
TABLE: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        # Only READY ends this, or an order given now would lead around the proof.
        (_S.STARTING, _E.READY): _S.ARMED,
        (_S.STARTING, _E.WELL): _S.STARTING,
        (_S.STARTING, _E.PROBLEM): _S.STARTING,
        (_S.STARTING, _E.FAULT): _S.STARTING,
        (_S.STARTING, _E.DISARM): _S.STARTING,
        (_S.STARTING, _E.ARM): _S.STARTING,
        (_S.STARTING, _E.CHANGE): _S.STARTING,
        (_S.STARTING, _E.CHANGED): _S.STARTING,
        (_S.STARTING, _E.CHANGE_FAILED): _S.STARTING,
        (_S.STARTING, _E.STOP): _S.STOPPING,
        (_S.ARMED, _E.READY): _S.ARMED,
        (_S.ARMED, _E.WELL): _S.ARMED,
        (_S.ARMED, _E.PROBLEM): _S.DEGRADED,
        (_S.ARMED, _E.FAULT): _S.HELD,
        (_S.ARMED, _E.DISARM): _S.DISARMED,
        (_S.ARMED, _E.ARM): _S.ARMED,
        (_S.ARMED, _E.CHANGE): _S.CHANGING,
        (_S.ARMED, _E.CHANGED): _S.HELD,
        (_S.ARMED, _E.CHANGE_FAILED): _S.HELD,
        (_S.ARMED, _E.STOP): _S.STOPPING,
        (_S.DEGRADED, _E.READY): _S.DEGRADED,
        (_S.DEGRADED, _E.WELL): _S.ARMED,
        (_S.DEGRADED, _E.PROBLEM): _S.DEGRADED,
        (_S.DEGRADED, _E.FAULT): _S.HELD,
        (_S.DEGRADED, _E.DISARM): _S.DISARMED,
        (_S.DEGRADED, _E.ARM): _S.DEGRADED,
        (_S.DEGRADED, _E.CHANGE): _S.CHANGING,
        (_S.DEGRADED, _E.CHANGED): _S.HELD,
        (_S.DEGRADED, _E.CHANGE_FAILED): _S.HELD,
        (_S.DEGRADED, _E.STOP): _S.STOPPING,
        (_S.HELD, _E.READY): _S.HELD,
        (_S.HELD, _E.WELL): _S.ARMED,
        (_S.HELD, _E.PROBLEM): _S.DEGRADED,
        (_S.HELD, _E.FAULT): _S.HELD,
        (_S.HELD, _E.DISARM): _S.DISARMED,
        (_S.HELD, _E.ARM): _S.HELD,
        (_S.HELD, _E.CHANGE): _S.CHANGING,
        (_S.HELD, _E.CHANGED): _S.HELD,
        (_S.HELD, _E.CHANGE_FAILED): _S.HELD,
        (_S.HELD, _E.STOP): _S.STOPPING,
        # Only ARM ends this. A changeover meanwhile swaps the model and stays disarmed.
        (_S.DISARMED, _E.READY): _S.DISARMED,
        (_S.DISARMED, _E.WELL): _S.DISARMED,
        (_S.DISARMED, _E.PROBLEM): _S.DISARMED,
        (_S.DISARMED, _E.FAULT): _S.DISARMED,
        (_S.DISARMED, _E.DISARM): _S.DISARMED,
        (_S.DISARMED, _E.ARM): _S.HELD,
        (_S.DISARMED, _E.CHANGE): _S.DISARMED,
        (_S.DISARMED, _E.CHANGED): _S.DISARMED,
        (_S.DISARMED, _E.CHANGE_FAILED): _S.DISARMED,
        (_S.DISARMED, _E.STOP): _S.STOPPING,
        # Observations do not end this: they are about the model that is on its way out.
        (_S.CHANGING, _E.READY): _S.CHANGING,
        (_S.CHANGING, _E.WELL): _S.CHANGING,
        (_S.CHANGING, _E.PROBLEM): _S.CHANGING,
        (_S.CHANGING, _E.FAULT): _S.CHANGING,
        (_S.CHANGING, _E.DISARM): _S.DISARMED,
        (_S.CHANGING, _E.ARM): _S.CHANGING,
        (_S.CHANGING, _E.CHANGE): _S.CHANGING,
        (_S.CHANGING, _E.CHANGED): _S.HELD,
        (_S.CHANGING, _E.CHANGE_FAILED): _S.HELD,
        (_S.CHANGING, _E.STOP): _S.STOPPING,
        (_S.STOPPING, _E.READY): _S.STOPPING,
        (_S.STOPPING, _E.WELL): _S.STOPPING,
        (_S.STOPPING, _E.PROBLEM): _S.STOPPING,
        (_S.STOPPING, _E.FAULT): _S.STOPPING,
        (_S.STOPPING, _E.DISARM): _S.STOPPING,
        (_S.STOPPING, _E.ARM): _S.STOPPING,
        (_S.STOPPING, _E.CHANGE): _S.STOPPING,
        (_S.STOPPING, _E.CHANGED): _S.STOPPING,
        (_S.STOPPING, _E.CHANGE_FAILED): _S.STOPPING,
        (_S.STOPPING, _E.STOP): _S.STOPPING,
    }
)

# Why a part that looked good is not passed. The states that are missing here pass parts.
WITHHELD: Mapping[State, Reason] = MappingProxyType(
    {
        State.STARTING: Reason.LINE_HELD,
        State.HELD: Reason.LINE_HELD,
        State.DISARMED: Reason.DISARMED,
        State.CHANGING: Reason.CHANGING_RECIPE,
        State.STOPPING: Reason.SHUTTING_DOWN,
    }
)


def next_state(state: State, event: Event) -> State:
    """Where an event leads."""
    return TABLE[state, event]


def may_pass(state: State) -> bool:
    """True where a part may be let go."""
    return state not in WITHHELD


def release(state: State, decision: Decision) -> Decision:
    """The decision as the state lets it out: a `pass` only where parts may be let go."""
    if decision.verdict is not Verdict.PASS or may_pass(state):
        return decision
    return replace(decision, verdict=Verdict.UNKNOWN, reason=WITHHELD[state])
