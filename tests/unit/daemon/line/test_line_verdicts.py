"""The law of triggers: whatever happens around it, each accepted id gets exactly one verdict."""

from __future__ import annotations

import threading
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from support.broker import wait_until
from support.line_rig import BAD, LevelRunner, Rig, model

from metal_edge.daemon.cameras import CameraError

CAPACITY = 3

OFFERS = st.tuples(st.just("offer"), st.integers(0, 11))
OTHERS = st.sampled_from(
    ["hold", "release", "answer all", "disarm", "arm", "swap", "camera fails", "model fails"]
).map(lambda name: (name, 0))
STEPS = st.lists(st.one_of(OFFERS, OFFERS, OFFERS, OTHERS), max_size=40)


class Story:
    """Carries out steps on a running line, and knows what was offered."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.offered: Counter[str] = Counter()
        self.free = threading.Event()
        self.free.set()
        rig.runner.gate = self.free

    def take(self, step: str, number: int) -> None:
        rig = self.rig
        if step == "offer":
            self.offered[f"t{number}"] += 1
            rig.trigger(f"t{number}")
        elif step == "hold":
            self.free.clear()
        elif step == "release":
            self.free.set()
        elif step == "answer all" and self.free.is_set():
            wait_until(lambda: len(rig.decisions) == len(self.offered), "all verdicts")
        elif step == "swap":
            runner = LevelRunner(0.1)
            runner.gate = self.free
            rig.line.replace_models({"cam0": model(runner, recipe="other")}, lambda old: None)
        elif step == "camera fails":
            rig.camera.script.put(CameraError("the cable is out"))
        elif step == "model fails":
            rig.runner.error = None if rig.runner.error else RuntimeError("no memory")
        elif step in ("arm", "disarm"):
            rig.command(step)


@settings(max_examples=40)
@given(STEPS, st.booleans())
def test_each_id_gets_exactly_one_verdict(steps: list[tuple[str, int]], abrupt: bool) -> None:
    rig = Rig(decision={"trigger_queue": CAPACITY, "deadline_ms": 20_000})
    with rig:
        story = Story(rig)
        for step, number in steps:
            story.take(step, number)
        if not abrupt:
            story.free.set()
            wait_until(lambda: len(rig.decisions) >= len(story.offered), "all verdicts")
        rig.stop.request()
        story.free.set()
        rig.end()
        story.take("offer", 99)  # a trigger that comes after the end has a right to an answer too
        answers = [a for a in rig.answers if a["verb"] == "trigger"]
        decided = Counter(d["trigger_id"] for d in rig.decisions)
        assert decided == Counter(story.offered.keys())
        accepted = Counter(a["trigger_id"] for a in answers if a["status"] == "accepted")
        refused = Counter(a["reason"] for a in answers if a["status"] == "refused")
        assert len(answers) == story.offered.total()
        assert all(count == 1 for count in accepted.values())
        assert refused["duplicate_trigger"] == story.offered.total() - len(story.offered)
        reasons = {d["trigger_id"]: d["reason"] for d in rig.decisions}
        overflown = [t for t, reason in reasons.items() if reason == "queue_overflow"]
        assert len(overflown) == refused["queue_overflow"]
        assert not set(overflown) & accepted.keys()
        assert [d["seq"] for d in rig.decisions] == list(range(1, len(rig.decisions) + 1))
        passed = [d for d in rig.decisions if d["verdict"] == "pass"]
        assert all(d["trigger_id"] in accepted and d["score"] < d["threshold"] for d in passed)


def test_many_senders_at_once_get_one_verdict_per_id() -> None:
    """Eight threads offer the same 41 ids in different orders."""
    rig = Rig(decision={"trigger_queue": CAPACITY})
    rig.camera.always = BAD
    with rig:
        start = threading.Barrier(8)

        def send(stride: int) -> None:
            start.wait(5)
            for number in range(41):
                rig.trigger(f"t{number * stride % 41}")

        senders = [threading.Thread(target=send, args=(stride,)) for stride in range(1, 9)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(10)
        rig.end()
        decided = Counter(d["trigger_id"] for d in rig.decisions)
        assert len(decided) == 41
        assert set(decided.values()) == {1}
