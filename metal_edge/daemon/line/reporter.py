"""One place where decisions get their number and leave the house."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from metal_edge.daemon.clock import Clock, ClockState
from metal_edge.daemon.deciding.decision import still_in_time
from metal_edge.daemon.mqtt.messages import Identity, Now, decision_payload, encode, extended
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.daemon.records.evidence import Case, EvidenceStats, EvidenceStore
from metal_edge.daemon.records.evidence_pictures import Shown
from metal_edge.domain import Decision

log = logging.getLogger(__name__)


class Reporter:
    """Numbers, publishes, logs and counts decisions, from whichever thread they come.

    `identity` and `clock_state` go with every decision; the deciding thread changes them.
    """

    def __init__(
        self,
        publisher: Publisher,
        identity: Identity,
        clock: Clock,
        pictures: EvidenceStore | None = None,
    ) -> None:
        self._publisher = publisher
        self._pictures = pictures
        self.identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seq = 0
        self.clock_state = ClockState(None, None)

    @property
    def last_seq(self) -> int:
        """Number of the last decision; 0 before the first."""
        return self._seq

    def counts(self) -> dict[str, int]:
        """Decisions so far, by verdict."""
        with self._lock:
            return {verdict: self._counts[verdict] for verdict in ("pass", "reject", "unknown")}

    @property
    def keeps_pictures(self) -> bool:
        """False where there is no place for any, so that a snapshot would keep nothing."""
        return self._pictures is not None

    def pictures(self) -> EvidenceStats:
        """How the keeping of pictures goes."""
        return EvidenceStats(0, 0, 0, None) if self._pictures is None else self._pictures.stats()

    def report(
        self,
        decision: Decision,
        shown: Sequence[Shown] = (),
        keep: bool = False,
        last_look: Callable[[Decision], Decision] = lambda decision: decision,
    ) -> Decision:
        """Publishes the decision at once, then sees to its audit copy; gives it numbered.

        Args:
            shown: what the views saw; nobody may change these pictures afterwards.
            keep: the pictures are wanted whatever the settings say.
            last_look: may take a `pass` back in the moment before it goes out.
        """
        with self._lock:  # the numbers on the wire must come in order
            self._seq += 1
            decision = replace(decision, seq=self._seq)
            payload = self._payload(decision)
            encoded = encode(payload)
            # First the note, then the word: no decision that somebody heard lacks its event, not
            # even if this process dies in between. `null`: nobody knows whether it was heard.
            note = extended(encoded, decision_sent=None, evidence=None)
            self._publisher.begin_event(payload["event_id"], note)
            now_ns = self._clock.mono_ns()
            told = last_look(still_in_time(decision, now_ns))
            if told is not decision:  # lock or note had to wait
                decision, payload = told, self._payload(told)
                encoded = encode(payload)
            self._counts[decision.verdict.value] += 1
            sent = self._publisher.decision(payload, encoded)

        def put_event(names: dict[str, Any] | None) -> None:
            event = extended(encoded, decision_sent=sent, evidence=names)
            self._publisher.event(payload["event_id"], event)

        store = self._pictures
        if store is not None and shown and (keep or store.wants(decision.verdict)):
            # The event follows when its pictures are on the disk, or are given up.
            store.offer(Case(payload, shown), put_event)
        else:
            put_event(None)
        log.info(
            "seq=%d part=%s trigger=%s frame=%s verdict=%s reason=%s score=%s sent=%s ms=%.1f",
            decision.seq,
            decision.trigger.part_id,
            decision.trigger.trigger_id,
            decision.frame_id,
            decision.verdict.value,
            decision.reason,
            "-" if decision.score is None else f"{decision.score:.6g}",
            sent,
            (now_ns - decision.trigger.t_mono_ns) / 1e6,
            extra={
                "station": self.identity.topic_root,
                "seq": decision.seq,
                "part_id": decision.trigger.part_id,
                "trigger_id": decision.trigger.trigger_id,
                "frame_id": decision.frame_id,
                "verdict": decision.verdict.value,
                "reason": str(decision.reason),
                "score": decision.score,
                "sent": sent,
            },
        )
        return decision

    def _payload(self, decision: Decision) -> dict[str, Any]:
        now = Now(self._clock.mono_ns(), self._clock.utc_ns())
        return decision_payload(decision, self.identity, now, self.clock_state)
