"""The unit file under a real systemd: start, watchdog, credentials, sandbox, stop."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.broker import busy, wait_until
from support.machine import Ear
from support.tiny_bundle import build_bundle, write_image

if TYPE_CHECKING:
    from conftest import Press

pytestmark = pytest.mark.timeout(120)
Measured = Callable[[str, float], None]


def sessions(ear: Ear) -> list[str]:
    """Of every `online`, in order."""
    return [state["session_id"] for state in ear.all("state") if state["status"] == "online"]


def slow_on_bright(press: Press, turns: int) -> None:
    """Another model, and a picture that it takes so long for."""
    shutil.rmtree(press.etc / "bundle")
    build_bundle(press.etc / "bundle", fault="slow", turns=turns)
    write_image(press.etc / "images" / "bright.png", 100)


def test_start_waits_for_an_armed_line(press: Press, ear: Ear) -> None:
    press.start()
    unit = press.show()
    assert (unit["Type"], unit["ActiveState"], unit["NRestarts"]) == ("notify", "active", "0")
    assert "inspecting with tiny" in unit["StatusText"]
    wait_until(lambda: sessions(ear), "the birth")


def test_a_hang_ends_and_the_line_is_back_within_five_seconds(
    press: Press, ear: Ear, measured: Measured
) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = press.pid
    began = time.monotonic()
    press.kill("STOP")
    press.back_as_another(pid, 20)
    took = time.monotonic() - began
    measured("SIGSTOP to READY again, watchdog included", took)
    assert took <= busy(5)
    assert press.show()["NRestarts"] == "1"
    assert "watchdog" in press.machine.run("journalctl", "-u", "metal-edge@press1").lower()
    wait_until(lambda: len(set(sessions(ear))) == 2, "a second session")


def test_a_model_that_hangs_ends_though_every_other_thread_lives(
    press: Press, ear: Ear, measured: Measured
) -> None:
    """SIGSTOP holds all threads, also one that would do nothing but feed the watchdog."""
    slow_on_bright(press, turns=2**40)
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = press.pid
    began = time.monotonic()
    press.trigger("t1", "bright")
    press.back_as_another(pid, 20)
    took = time.monotonic() - began
    measured("trigger whose inference hangs to READY again, watchdog included", took)
    assert took <= busy(5)
    assert press.show()["NRestarts"] == "1"
    journal = press.journal()
    assert "onnxruntime_inference_collection.py" in journal, "where the thread hung"
    wait_until(lambda: len(set(sessions(ear))) == 2, "a second session")
    assert [d for d in ear.all("decision") if d["verdict"] == "pass"] == []
    press.trigger("t2", "good")
    wait_until(lambda: [d for d in ear.all("decision") if d["verdict"] == "pass"], "work again")


def test_kill_nine_is_survived(press: Press, ear: Ear, measured: Measured) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = press.pid
    began = time.monotonic()
    press.kill("KILL")
    press.back_as_another(pid, 20)
    measured("kill -9 to READY again", time.monotonic() - began)
    wait_until(lambda: len(set(sessions(ear))) == 2, "a second session")


def test_the_password_comes_as_a_credential(press: Press, ear: Ear) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "a birth, which this broker takes from nobody else")
    pid = press.machine.outer_pid(press.pid)
    assert b"correct horse" not in Path(f"/proc/{pid}/environ").read_bytes()
    credential = "/run/credentials/metal-edge@press1.service/mqtt-password"
    mode = press.machine.run("stat", "--format=%a", credential).strip()
    assert mode in {"400", "440"}


def test_only_the_state_directory_can_be_written(press: Press) -> None:
    """As root, in the service's own view of the files: even root is refused."""
    press.start()
    pid = press.machine.outer_pid(press.pid)
    own = "/var/lib/metal-edge/press1/trial"
    assert press.machine.call("touch", own, pid=pid).returncode == 0
    for elsewhere in ("/usr/trial", "/etc/trial", "/var/lib/trial", "/opt/trial", "/boot/trial"):
        refused = press.machine.call("touch", elsewhere, pid=pid)
        assert refused.returncode != 0 and "Read-only" in refused.stderr, elsewhere
    assert press.machine.call("ls", "/home", "/root", pid=pid).stdout.split() == [
        "/home:",
        "/root:",
    ]
    status = dict(
        row.split(":\t", 1)
        for row in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in row
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["Uid"].split()[0]) >= 61184  # systemd's range of dynamic users


def test_the_outbox_lies_in_the_state_directory(press: Press, ear: Ear) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    press.trigger("t1", "good")
    wait_until(lambda: [e for e in ear.all("event") if e["trigger_id"] == "t1"], "the audit event")
    found = press.machine.run("find", "/var/lib/metal-edge/press1/", "-name", "outbox.sqlite")
    assert found.count("outbox.sqlite") == 1
    assert press.machine.run("find", "/run/metal-edge/press1/", "-name", "*.ring").count("\n") == 1


def test_reload_takes_settings_over_without_a_restart(press: Press, ear: Ear) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = press.pid
    settings = press.etc / "press1.toml"
    settings.write_text(press.settings.replace("5000", "4321"))
    press.machine.run("systemctl", "reload", "metal-edge@press1")
    wait_until(lambda: ear.all("config")[-1]["decision"]["deadline_ms"] == 4321, "new settings")
    settings.write_text(
        press.settings.replace("4321", "5000").replace("loop = true", "loop = false")
    )
    press.machine.run("systemctl", "reload", "metal-edge@press1")
    wait_until(lambda: "camera.loop cannot change" in press.journal(), "the refusal")
    wait_until(lambda: "reload failed" in press.show()["StatusText"], "the status to say so")
    assert press.pid == pid


def test_a_priority_that_the_sandbox_refuses_is_noted(press: Press, ear: Ear) -> None:
    (press.etc / "press1.toml").write_text(press.settings + "[runtime]\nrealtime_priority = 10\n")
    press.start()
    assert "runtime.realtime_priority = 10 is not permitted" in press.journal()
    wait_until(lambda: sessions(ear), "the birth all the same")


def test_exposure_is_low(press: Press) -> None:
    press.start()
    press.machine.run("systemd-analyze", "security", "--threshold=25", "metal-edge@press1")


def test_stop_finishes_the_part_in_hand(press: Press, ear: Ear, measured: Measured) -> None:
    slow_on_bright(press, turns=420_000)
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    press.trigger("t1", "bright", answer="reply/test")
    wait_until(lambda: ear.all("test"), "the part to be in hand")
    began = time.monotonic()
    press.machine.run("systemctl", "stop", "metal-edge@press1")
    took = time.monotonic() - began
    measured("systemctl stop, while the model is at a part", took)
    unit = press.show()
    assert (unit["Result"], unit["ExecMainStatus"]) == ("success", "0")
    journal = press.journal()
    assert journal.index("box: stopping") < journal.index("trigger=t1"), (
        "it was not in hand any more"
    )
    decided = wait_until(lambda: ear.all("decision"), "the verdict")
    assert [(d["trigger_id"], d["verdict"], d["reason"]) for d in decided] == [("t1", "pass", "ok")]
    wait_until(lambda: [e for e in ear.all("event") if e["trigger_id"] == "t1"], "its event")
    wait_until(lambda: ear.all("state")[-1]["status"] == "offline", "the goodbye")


def test_an_idle_line_stops_within_two_seconds(press: Press, ear: Ear, measured: Measured) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    began = time.monotonic()
    press.machine.run("systemctl", "stop", "metal-edge@press1")
    took = time.monotonic() - began
    measured("systemctl stop", took)
    assert took <= busy(2)
    wait_until(lambda: ear.all("state")[-1]["status"] == "offline", "the goodbye")


def test_the_journal_has_each_part_as_json(press: Press, ear: Ear) -> None:
    """Its priority is the journal's own, and no mark in the text."""
    (press.etc / "press1.toml").write_text(press.settings + '[log]\nformat = "json"\n')
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = str(press.pid)
    press.trigger("t1", "good")

    def told() -> list[tuple[str, dict[str, Any]]]:
        rows = press.machine.run(
            "journalctl", "-u", "metal-edge@press1", "-o", "json", "--no-pager"
        )
        entries = [json.loads(row) for row in rows.splitlines()]
        own = [entry for entry in entries if entry.get("_PID") == pid]
        return [(entry["PRIORITY"], json.loads(entry["MESSAGE"])) for entry in own]

    def of_the_part() -> list[tuple[str, dict[str, Any]]]:
        return [(how, line) for how, line in told() if line.get("part_id") == "good"]

    ((priority, line),) = wait_until(of_the_part, "the part in the journal")
    assert priority == "6"
    assert (line["trigger_id"], line["verdict"], line["reason"]) == ("t1", "pass", "ok")


def test_a_broker_that_goes_is_no_reason_to_restart(press: Press, ear: Ear) -> None:
    press.start()
    wait_until(lambda: sessions(ear), "the birth")
    pid = press.pid
    press.machine.run("systemctl", "stop", "mosquitto")
    wait_until(lambda: "broker" in press.show()["StatusText"], "degraded")
    press.machine.run("systemctl", "start", "mosquitto")
    wait_until(lambda: press.show()["StatusText"] == "online", "the line to be whole", 20)
    assert press.pid == pid
    assert press.show()["NRestarts"] == "0"


def test_a_wrong_password_degrades_and_says_so(press: Press) -> None:
    (press.etc / "press1.mqtt-password").write_text("wrong")
    press.start()
    assert "broker" in press.show()["StatusText"]
    assert "authori" in press.journal().lower()


def test_a_line_starts_without_its_broker(press: Press) -> None:
    press.machine.run("systemctl", "stop", "mosquitto")
    press.start()
    wait_until(lambda: "broker" in press.show()["StatusText"], "degraded")
    press.machine.run("systemctl", "start", "mosquitto")
    wait_until(lambda: press.show()["StatusText"] == "online", "the line to be whole", 20)
    assert press.show()["NRestarts"] == "0"


def test_a_line_waits_for_its_bundle(press: Press, ear: Ear) -> None:
    """READY says that the daemon stands, the status that its line does not yet."""
    (press.etc / "bundle").rename(press.etc / "elsewhere")
    press.start()
    assert "offline" in press.show()["StatusText"]
    (press.etc / "elsewhere").rename(press.etc / "bundle")
    wait_until(lambda: sessions(ear), "the birth", 20)
    assert press.show()["NRestarts"] == "0"


def test_a_mistake_in_the_settings_is_not_tried_for_ever(press: Press) -> None:
    (press.etc / "press1.toml").write_text("bundel = 1")
    assert press.machine.call("systemctl", "start", "metal-edge@press1").returncode != 0
    unit = press.show()
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "78", "0")
    assert "did you mean 'bundle'" in press.journal()


def test_the_documented_drop_in_gives_the_priority(press: Press, ear: Ear) -> None:
    limit = (
        "--pipe",
        "--wait",
        "-q",
        "-pLimitRTPRIO=50",
        "sh",
        "-c",
        "grep priority /proc/self/limits",
    )
    if " 50 " not in press.machine.run("systemd-run", *limit):
        pytest.skip("this computer lets nobody raise RLIMIT_RTPRIO")
    page = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    lines = page.split("  ```\n  [Service]\n")[1].split("  ```")[0]
    assert "LimitRTPRIO" in lines
    drop_in = "/run/systemd/system/metal-edge@press1.service.d"
    write = f"mkdir -p {drop_in} && printf '%s' \"$1\" > {drop_in}/rt.conf"
    press.machine.run("sh", "-c", write, "sh", "[Service]\n" + lines)
    press.machine.run("systemctl", "daemon-reload")
    try:
        (press.etc / "press1.toml").write_text(
            press.settings + "[runtime]\nrealtime_priority = 10\n"
        )
        press.start()
        wait_until(lambda: "runs at SCHED_FIFO 10" in press.journal(), "the priority")
        wait_until(lambda: sessions(ear), "the birth")
        press.machine.run("systemd-analyze", "security", "--threshold=25", "metal-edge@press1")
    finally:
        press.machine.run("rm", "-r", drop_in)
        press.machine.run("systemctl", "daemon-reload")
