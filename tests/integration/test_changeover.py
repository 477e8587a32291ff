"""Other recipes and other settings while the line runs: a real daemon, broker and signals."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.broker import Listener, wait_until
from support.daemon_process import STATION, Daemon
from support.tiny_bundle import build_bundle, describe_again, seal

if TYPE_CHECKING:
    from conftest import StartDaemon
STRICT = 0.1  # good.png scores 0.2: rejected
_ids = count(1)


def ask(listener: Listener, verb: str, timeout_s: float = 20, **fields: Any) -> dict[str, Any]:
    """Sends a command; its answer."""
    mark = f"ask-{next(_ids)}".encode()
    listener.command(STATION, json.dumps(fields).encode(), mark, verb=verb)
    answer = listener.wait("replies", lambda heard: heard.correlation == mark, timeout_s).data
    assert isinstance(answer, dict)
    return answer


def look(listener: Listener) -> dict[str, Any]:
    """The verdict on one more good part."""
    trigger_id = f"t{next(_ids)}"
    listener.trigger(STATION, trigger_id, "good")
    return listener.verdict(trigger_id)


def settled(listener: Listener, verdict: str) -> dict[str, Any]:
    """The first verdict that is not withheld: after a change the line must first show itself."""

    def seen() -> dict[str, Any] | None:
        decision = look(listener)
        return None if decision["reason"] in {"line_held", "changing_recipe"} else decision

    decision = wait_until(seen, "a verdict that counts")
    assert isinstance(decision, dict)
    assert decision["verdict"] == verdict
    return decision


def state_says(listener: Listener, problem: str) -> Callable[[], bool]:
    return lambda: any(problem in text for text in listener.all("state")[-1].data["problems"])


def edit_manifest(bundle: Path, **changes: Any) -> None:
    manifest = bundle / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, **changes}))
    seal(bundle)


def take_long(bundle: Path) -> None:
    """To prove: a second or two."""
    golden = json.loads((bundle / "golden/golden.json").read_text())
    golden["images"] *= 4000
    (bundle / "golden/golden.json").write_text(json.dumps(golden))
    describe_again(bundle)


def recipes(*names: str) -> dict[str, Any]:
    return {f"recipes.{name}": {"bundle": name} for name in names}


def test_the_old_recipe_serves_until_the_new_one_is_proven(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    strict = build_bundle(line / "strict", threshold=STRICT)
    take_long(strict)
    start(**recipes("strict")).armed(listener)
    old = look(listener)
    listener.command(STATION, b'{"recipe": "strict"}', b"change", verb="recipe")
    meanwhile = []
    while b"change" not in [heard.correlation for heard in listener.all("replies")]:
        meanwhile.append(look(listener))
    answer = listener.wait("replies", lambda heard: heard.correlation == b"change").data
    assert (answer["status"], answer["recipe"]) == ("done", "strict")
    # Every part was judged, by the old model, and passed.
    before = [decision for decision in meanwhile if decision["model"] == old["model"]]
    assert len(before) >= 5
    assert {decision["verdict"] for decision in before} == {"pass"}
    assert {decision["verdict"] for decision in meanwhile} <= {"pass", "reject", "unknown"}
    new = settled(listener, "reject")
    assert new["threshold"] == STRICT
    assert new["model"]["sha256"] == answer["model"]["sha256"] != old["model"]["sha256"]
    retained = listener.all("model")[-1].data
    assert (retained["recipe"], retained["sha256"]) == ("strict", new["model"]["sha256"])
    assert new["session_id"] == old["session_id"]


def test_a_stop_does_not_wait_for_a_long_proof(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    strict = build_bundle(line / "strict", threshold=STRICT)
    take_long(strict)
    daemon = start(**recipes("strict"))
    daemon.armed(listener)
    listener.command(STATION, b'{"recipe": "strict"}', b"change", verb="recipe")
    wait_until(lambda: "recipe strict is being proven" in daemon.log, "the proof to begin")
    assert look(listener)["verdict"] == "pass"
    assert daemon.stop() == 0
    assert listener.all("state")[-1].data["status"] == "offline"


def missing(line: Path) -> None:
    shutil.rmtree(line / "new")


def changed(line: Path) -> None:
    (line / "new/thresholds.json").write_text(
        (line / "new/thresholds.json").read_text().replace("0.1", "0.9")
    )


def golden_off(line: Path) -> None:
    golden = line / "new/golden/golden.json"
    golden.write_text(golden.read_text().replace('"score": 0.0', '"score": 0.3'))
    describe_again(line / "new")


def other_camera(line: Path) -> None:
    shutil.rmtree(line / "new")
    build_bundle(line / "new", source_size=(640, 480))


def other_engine(line: Path) -> None:
    edit_manifest(line / "new", backend="tensorrt")


def older(line: Path) -> None:
    edit_manifest(line / "new", version="0.9")


FAULTS = {
    missing: "is not a bundle",
    changed: "was changed after the bundle was built",
    golden_off: "golden image",
    other_camera: "is for pictures of 640 x 480",
    other_engine: "TensorRT",
    older: "older than 1",
}


def test_whatever_is_wrong_with_the_new_one_the_old_one_serves_on(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    daemon = start(**recipes("new", "strict"))
    daemon.armed(listener)
    old = look(listener)["model"]
    for spoil, reason in FAULTS.items():
        shutil.rmtree(line / "new", ignore_errors=True)
        build_bundle(line / "new", threshold=STRICT)
        spoil(line)
        answer = ask(listener, "recipe", recipe="new")
        assert answer["status"] == "failed", spoil
        assert reason in answer["reason"], spoil
        wait_until(state_says(listener, "recipe new failed"), "the state to say so")
        part = look(listener)
        assert (part["verdict"], part["model"]) == ("pass", old), spoil
    assert daemon.log.count("the line goes on as before") == len(FAULTS)
    build_bundle(line / "strict", threshold=STRICT)
    assert ask(listener, "recipe", recipe="strict")["status"] == "done"
    wait_until(lambda: listener.all("state")[-1].data["status"] == "online", "no problem left")


def test_an_older_version_may_come_back_when_that_is_said(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    build_bundle(line / "new")
    edit_manifest(line / "new", version="0.9")
    start(**recipes("new")).armed(listener)
    assert ask(listener, "recipe", recipe="new")["status"] == "failed"
    answer = ask(listener, "recipe", recipe="new", allow_downgrade=True)
    assert (answer["status"], answer["model"]["version"]) == ("done", "0.9")


def test_a_recipe_that_nobody_knows_is_refused(start: StartDaemon, listener: Listener) -> None:
    start().armed(listener)
    answer = ask(listener, "recipe", recipe="bottle")
    assert (answer["status"], answer["reason"]) == ("refused", "no recipe 'bottle' in the settings")
    assert look(listener)["verdict"] == "pass"


@pytest.mark.parametrize("fault", ["nan_score", "fails"])
def test_a_model_that_fails_in_service_gives_way_by_itself(
    fault: str, line: Path, start: StartDaemon, listener: Listener
) -> None:
    """Its golden image is dark and comes out right; any real part does not."""
    build_bundle(line / "poor", fault=fault)
    start(**recipes("poor")).armed(listener)
    old = look(listener)["model"]
    assert ask(listener, "recipe", recipe="poor")["status"] == "done"
    assert look(listener)["verdict"] == "unknown"
    back = settled(listener, "pass")
    assert back["model"] == old
    wait_until(state_says(listener, "recipe poor failed in service"), "the state to say so")
    retained = listener.all("model")[-1].data
    assert (retained["recipe"], retained["sha256"]) == ("default", old["sha256"])
    # The way back is no dead end.
    assert ask(listener, "recipe", recipe="default")["status"] == "done"
    wait_until(lambda: listener.all("state")[-1].data["status"] == "online", "no problem left")


def test_golden_images_can_be_checked_in_between(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    start().armed(listener)
    answer = ask(listener, "golden-check")
    assert (answer["status"], answer["images"]) == ("done", 1)
    assert 0 <= answer["worst_difference"] <= answer["tolerance"]
    (line / "bundle/golden/000.png").write_bytes(b"rot")
    answer = ask(listener, "golden-check")
    assert answer["status"] == "failed"
    assert "golden/000.png was changed" in answer["reason"]
    assert look(listener)["verdict"] == "pass"  # the model in memory is well


def test_the_recipe_outlives_the_daemon(
    line: Path, start: StartDaemon, listener: Listener, tmp_path: Path
) -> None:
    build_bundle(line / "strict", threshold=STRICT)
    place = {"STATE_DIRECTORY": str(tmp_path / "state")}
    first = start(place, **recipes("strict"))
    first.armed(listener)
    assert ask(listener, "recipe", recipe="strict")["status"] == "done"
    first.process.kill()
    first.exit_code()
    listener.wipe()
    second = start(place, **recipes("strict"))
    second.armed(listener)
    assert listener.all("model")[-1].data["recipe"] == "strict"
    assert look(listener)["threshold"] == STRICT
    assert second.stop() == 0
    # Another recipe would be a guess: the line stays away and says what to do.
    third = start(place)
    assert third.exit_code() == 78
    assert "recipe 'strict' was in use" in third.log


def reload(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGHUP)


def test_sighup_takes_over_what_may_change(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    daemon = start()
    daemon.armed(listener)
    build_bundle(line / "strict", threshold=STRICT)
    settings = line / "line.toml"
    text = settings.read_text()
    text = text.replace('bundle = "bundle"', 'bundle = "strict"').replace("5000", "4000")
    settings.write_text(text + "[gate]\noffset_ms = 3000\n")
    reload(daemon)
    listener.wait("config", lambda heard: heard.data["gate"]["offset_ms"] == 3000)
    part = settled(listener, "reject")
    assert part["threshold"] == STRICT
    assert part["gate"]["offset_ms"] == 3000
    started = listener.all("config")[-1].data
    assert started["decision"]["deadline_ms"] == 4000


def test_sighup_refuses_what_needs_a_restart_and_names_it(
    line: Path, start: StartDaemon, listener: Listener
) -> None:
    daemon = start()
    daemon.armed(listener)
    settings = line / "line.toml"
    before = settings.read_text()
    settings.write_text(before.replace("timeout_s = 1.0", "timeout_s = 2.0") + "[gate]\n")
    reload(daemon)
    wait_until(lambda: "camera.timeout_s cannot change" in daemon.log, "the refusal")
    wait_until(state_says(listener, "reload failed"), "the state to say so")
    settings.write_text("bundel = 1")
    reload(daemon)
    wait_until(lambda: "did you mean 'bundle'" in daemon.log, "the mistake to be named")
    assert look(listener)["verdict"] == "pass"
    build_bundle(line / "new", threshold=STRICT)
    golden_off(line)
    settings.write_text(before.replace('bundle = "bundle"', 'bundle = "new"'))
    reload(daemon)
    wait_until(lambda: "reload failed, the line goes on as before: golden" in daemon.log, "proof")
    assert look(listener)["verdict"] == "pass"
    settings.write_text(before)
    reload(daemon)
    wait_until(lambda: listener.all("state")[-1].data["status"] == "online", "no problem left")
    assert daemon.stop() == 0
