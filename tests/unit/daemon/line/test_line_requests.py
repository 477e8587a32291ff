"""What other threads ask of a line: arm, disarm, other models, snapshots."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
from support.broker import wait_until
from support.line_rig import BAD, GOOD, LevelRunner, Rig, model

from metal_edge.daemon.line.model import Model

ANY_MODE = pytest.mark.parametrize("mode", ["triggered", "latest", "hardware"])


class HandedBack:
    """Remembers which models came back, and in which thread."""

    def __init__(self) -> None:
        self.models: list[Mapping[str, Model]] = []
        self.threads: list[str] = []

    def __call__(self, models: Mapping[str, Model]) -> None:
        self.threads.append(threading.current_thread().name)
        self.models.append(models)


def test_disarmed_every_trigger_is_unknown_at_once_until_armed() -> None:
    with Rig() as rig:
        rig.command("disarm", '{"reason": "cleaning  the\\nlens"}')
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "unknown", "disarmed")]
        assert rig.camera.triggered == []
        beat = rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")
        assert (beat["state"], beat["problems"]) == ("disarmed", ["disarmed: cleaning the lens"])
        assert rig.broker.states[-1]["status"] == "degraded"
        rig.command("arm")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        rig.trigger("t2")
        assert rig.verdicts(2)[1] == ("t2", "pass", "ok")
        assert [(a["verb"], a["status"]) for a in rig.answers if a["verb"] != "trigger"] == [
            ("disarm", "done"),
            ("arm", "done"),
        ]


@ANY_MODE
def test_arm_gives_what_failed_another_chance_and_no_more(mode: str) -> None:
    rig = Rig(camera={"mode": mode})
    rig.camera.always = None
    rig.runner.error = RuntimeError("the graphics card is gone")

    def three_parts(first: int) -> None:
        for number in range(first, first + 3):
            rig.trigger(f"t{number}")
            rig.camera.script.put(GOOD)
            rig.verdicts(number + 1)
        rig.beat(lambda b: b["problems"] == ["inference"], "the fault in a heartbeat")

    with rig:
        three_parts(0)
        rig.command("arm")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        three_parts(3)
        assert {d["verdict"] for d in rig.decisions} == {"unknown"}


def test_a_part_in_hand_does_not_pass_after_disarm_was_answered() -> None:
    with Rig() as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1")
        assert rig.runner.inside.wait(5)
        rig.command("disarm")
        rig.runner.gate.set()
        assert rig.verdicts(1) == [("t1", "unknown", "disarmed")]


def test_disarming_is_heard_before_the_next_beat_is_due() -> None:
    with Rig(heartbeat_hz=1) as rig:
        wait_until(lambda: rig.broker.beats, "the first heartbeat")
        rig.command("disarm")
        wait_until(lambda: not rig.broker.beats[-1]["healthy"], "an unhealthy heartbeat", 0.8)


@ANY_MODE
def test_models_are_swapped_between_two_parts(mode: str) -> None:
    """The new one finds everything bad; it must judge all parts that come later, and only those."""
    with Rig(camera={"mode": mode}) as rig:
        old, new, back = (
            rig.models,
            {"cam0": model(LevelRunner(0.5), recipe="strict")},
            HandedBack(),
        )
        held = rig.runner.gate = threading.Event()
        rig.trigger("t1")
        assert rig.runner.inside.wait(5)
        rig.line.replace_models(new, back)
        assert back.models == []
        held.set()
        wait_until(lambda: back.models, "the old models")
        rig.trigger("t2")
        wait_until(lambda: rig.decisions[-1]["model"]["id"] == "strict", "a part under the new one")
        ids = [d["model"]["id"] for d in rig.decisions]
        verdicts = {d["model"]["id"]: d["verdict"] for d in rig.decisions}
        assert ids == sorted(ids), "old, then new"
        assert verdicts == {"default": "pass", "strict": "reject"}
        assert (back.models, back.threads) == ([old], ["line"])
        assert rig.line.serving is new["cam0"]


def test_models_are_swapped_while_no_part_comes() -> None:
    rig = Rig(camera={"mode": "hardware"})
    rig.camera.always = None
    with rig:
        back = HandedBack()
        rig.line.replace_models({"cam0": model(LevelRunner(), recipe="other")}, back)
        wait_until(lambda: back.models, "the old models")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")


def test_a_new_model_lets_parts_go_before_the_next_beat_is_due() -> None:
    """Or each change of recipe would cost a heartbeat's time of good parts."""
    with Rig(heartbeat_hz=1) as rig:
        wait_until(lambda: rig.broker.beats, "the first heartbeat")
        back = HandedBack()
        rig.line.replace_models({"cam0": model(LevelRunner(), recipe="other")}, back)
        wait_until(lambda: back.models and len(rig.broker.beats) == 2, "a beat of its own", 0.8)
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "pass", "ok")]


def test_the_part_in_hand_is_judged_by_the_old_model() -> None:
    rig = Rig()
    rig.camera.always = None
    with rig:
        back = HandedBack()
        rig.trigger("t1")
        wait_until(lambda: rig.camera.triggered, "the part to be in hand")
        rig.line.replace_models({"cam0": model(LevelRunner(), recipe="other", threshold=0.1)}, back)
        rig.beat(lambda b: True, "a heartbeat")
        assert back.models == []
        rig.camera.script.put(GOOD)
        assert rig.verdicts(1) == [("t1", "pass", "ok")]
        assert rig.decisions[0]["threshold"] == 0.5
        wait_until(lambda: back.models, "the old models")


def test_two_replacements_hand_back_one_after_the_other() -> None:
    with Rig() as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1")
        assert rig.runner.inside.wait(5)
        second, third = ({"cam0": model(LevelRunner(), recipe=name)} for name in ("b", "c"))
        back = HandedBack()
        rig.line.replace_models(second, back)
        rig.line.replace_models(third, back)
        rig.runner.gate.set()
        wait_until(lambda: len(back.models) == 2, "both")
        assert back.models == [rig.models, second]


def test_models_that_never_served_are_handed_back_when_the_line_stops() -> None:
    with Rig() as rig:
        rig.end()
        back, new = HandedBack(), {"cam0": model(LevelRunner())}
        rig.line.replace_models(new, back)
        assert back.models == [new]


def test_models_of_other_views_are_refused() -> None:
    rig = Rig()
    for strange in ({}, {"cam1": model(LevelRunner())}):
        with pytest.raises(ValueError, match="views"):
            rig.line.replace_models(strange, HandedBack())


def test_a_mistake_in_who_takes_the_old_models_does_not_end_the_line() -> None:
    def broken(models: Any) -> None:
        raise ZeroDivisionError

    with Rig() as rig:
        rig.line.replace_models({"cam0": model(LevelRunner())}, broken)
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "pass", "ok")]


def test_a_snapshot_is_answered_with_the_part_whose_pictures_were_kept() -> None:
    with Rig(pictures=True) as rig:
        rig.command("snapshot")
        assert rig.answers == []
        rig.camera.script.put(BAD)
        rig.trigger("t1", "bolt-7")
        rig.verdicts(1)
        wait_until(lambda: len(rig.answers) == 2, "both answers")
        answer = rig.answers[1]
        assert (answer["verb"], answer["status"]) == ("snapshot", "done")
        assert (answer["trigger_id"], answer["part_id"]) == ("t1", "bolt-7")
        assert answer["event_id"] == rig.decisions[0]["event_id"]
        (case,) = rig.kept
        assert case.decision["trigger_id"] == "t1"
        assert [(s.camera_id, int(s.image[0, 0, 0])) for s in case.shown] == [("cam0", BAD)]
        rig.trigger("t2")
        rig.verdicts(2)
        assert len(rig.kept) == 1


def test_a_snapshot_without_a_place_for_pictures_is_refused() -> None:
    with Rig() as rig:
        rig.command("snapshot")
        assert [a["status"] for a in rig.answers] == ["refused"]


def test_snapshots_that_never_come_are_answered_too() -> None:
    with Rig(pictures=True) as rig:
        for _ in range(5):
            rig.command("snapshot")
        assert [a["status"] for a in rig.answers] == ["refused"]
        rig.end()
        assert [a["status"] for a in rig.answers] == ["refused", *["failed"] * 4]
        rig.command("snapshot")
        assert rig.answers[-1]["status"] == "refused"
