"""Processes that build and prove a plan: real ones, which crash, hang, or are told to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.attention_bundle import attention_bundle
from support.broker import wait_until
from support.tensorrt_machine import Machine

from metal_edge.bundle import Bundle
from metal_edge.errors import BundleError, UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions
from metal_edge.export.tensorrt_bundle import Plan, ensure_plan
from metal_edge.export.tensorrt_children import run_job
from metal_edge.export.tensorrt_trial import Job

JOB = Job(
    step="prove", name="plugin", plugin=True, model=Path("m"), plan=Path("p"), bundle=Path("b")
)
SAY = """
import json, os, signal, sys, time
def say(kind, value):
    os.write(1, json.dumps([kind, value]).encode() + b"\\n")
job = json.loads(sys.stdin.readline())
"""


def child(code: str) -> tuple[str, ...]:
    """A process that has read its job, with `say`."""
    return (sys.executable, "-S", "-c", SAY + code)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def quiet() -> BuildLog:
    return BuildLog(lambda *_: None)


def test_the_answer_and_the_words_of_the_builder() -> None:
    seen: list[tuple[str, int, int]] = []
    log = BuildLog(lambda *step: seen.append(step))
    code = (
        "say('phase', ['Building', None, 2]); say('note', ['INFO', job['name']])\n"
        "print('from a library', file=sys.stderr); say('step', ['Building', 0])\n"
        "say('done', {'ms': [1.5]})"
    )
    assert run_job(JOB, log, command=child(code)) == {"ms": [1.5]}
    assert seen == [("Building", 0, 2), ("Building", 1, 2)]
    assert log.text == "INFO plugin\nSTDERR from a library\n"


DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": r"its process died of SIGKILL$",
    "import ctypes; ctypes.string_at(16)": r"its process died of SIGSEGV$",
    "print('corrupted size', file=sys.stderr, flush=True); os.abort()": (
        r"died of SIGABRT \(corrupted size\)$"
    ),
    "raise RuntimeError('no CUDA')": r"exit code 1 \(RuntimeError: no CUDA\)$",
    "pass": r"its process ended without an answer$",
    "say('done', {'ms': [1]}); sys.stdout.flush(); os.kill(os.getpid(), 11)": r"died of SIGSEGV$",
    "os.write(1, b'CUDA error 700\\n')": r"its process said b'CUDA error 700'$",
    "os.write(1, b'x' * (3 << 20))": r"a line without an end$",
}


@pytest.mark.parametrize("code", DEATHS)
def test_whatever_it_dies_of_is_an_error_with_its_last_words(code: str) -> None:
    with pytest.raises(UnavailableError) as error:
        run_job(JOB, quiet(), command=child(code))
    assert re.search(DEATHS[code], error.value.what), error.value.what
    assert "--attention native" in error.value.remedy


def test_its_own_error_is_raised_here() -> None:
    code = "say('error', ['BundleError', 'golden image x scored 9', 'build again'])"
    with pytest.raises(BundleError, match=r"golden image x scored 9: build again"):
        run_job(JOB, quiet(), command=child(code))


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(UnavailableError, match="cannot start /no/python"):
        run_job(JOB, quiet(), command=("/no/python",))


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    """Its words put the limit off: without them, it would be reached before `and now`."""
    pid = tmp_path / "pid"
    code = (
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "for word in ('still here', 'and here', 'and now'):\n"
        "    time.sleep(2); say('note', ['INFO', word])\n"
        "time.sleep(600)"
    )
    log = quiet()
    with pytest.raises(UnavailableError, match=r"its process hung: no word for 5 s"):
        run_job(JOB, log, command=child(code), silence_s=5.0)
    assert log.text == "INFO still here\nINFO and here\nINFO and now\n"
    assert not alive(int(pid.read_text()))


@pytest.mark.parametrize("talks", [True, False])
def test_a_wish_to_stop_ends_the_process(tmp_path: Path, talks: bool) -> None:
    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
    code += "say('phase', ['Building', None, 9])\n"
    code += "while True: say('step', ['Building', 0])" if talks else "time.sleep(600)"
    seen: list[str] = []
    log = BuildLog(lambda phase, *_: seen.append(phase), lambda: bool(seen))
    with pytest.raises(KeyboardInterrupt):
        run_job(JOB, log, command=child(code))
    assert not alive(int(pid.read_text()))


def test_a_broken_display_ends_the_process() -> None:
    def report(phase: str, done: int, total: int) -> None:
        raise BrokenPipeError(phase)

    code = "say('phase', ['Building', None, 9]); time.sleep(600)"
    with pytest.raises(BrokenPipeError):
        run_job(JOB, BuildLog(report), command=child(code))


def test_a_process_whose_parent_was_killed_ends(tmp_path: Path) -> None:
    """Real `main`, waiting in TensorRT for ever; its parent gets SIGKILL."""
    pid = tmp_path / "pid"
    waits = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from metal_edge.export.tensorrt_trial import main\n"
        "def trt():\n"
        f"    Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "main(trt)\n"
    )
    parent_code = (
        "import sys\n"
        "from metal_edge.export.tensorrt_builder import BuildLog\n"
        "from metal_edge.export.tensorrt_children import run_job\n"
        "from metal_edge.export.tensorrt_trial import Job\n"
        f"job = Job.model_validate_json({JOB.model_dump_json()!r})\n"
        f"run_job(job, BuildLog(lambda *_: None), command=(sys.executable, '-c', {waits!r}))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    try:
        wait_until(lambda: pid.is_file() and pid.read_text(), "the child runs", 60)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        wait_until(lambda: not alive(int(pid.read_text())), "the child ends", 10)
    finally:
        parent.kill()


# --- `auto` with real processes, TensorRT and GPU as stand-ins -------------------------------


def auto(machine: Machine, bundle: Bundle, said: list[str]) -> Plan:
    log = BuildLog(lambda *_: None)
    return ensure_plan(
        bundle, BuildOptions(), log, said.append, lambda: datetime(2026, 1, 1, tzinfo=UTC)
    )


FAULTS = {
    "plugin/build/SIGSEGV": "its process died of SIGSEGV",
    "plugin/prove/sticky": "CUDA failed in cuStreamSynchronize (an illegal address, 700)",
    "plugin/prove/exit": "its process ended with exit code 3 (CUDA error 700, giving up)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_that_takes_its_process_along_leaves_native(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    machine.start_processes(fault)
    bundle, said = Bundle.open(attention_bundle(tmp_path / "bundle")), list[str]()
    plan = auto(machine, bundle, said)
    build = plan.cached.manifest.build
    assert build["attention"] == "native"
    native, plugin = build["candidates"]
    assert native["correct"]
    assert native["median_ms"] > 0
    assert (plugin["correct"], plugin["why"]) == (False, FAULTS[fault])
    assert f"attention plugin is out: {FAULTS[fault]}" in said
    log = (plan.cached.folder / "build.log").read_text()
    assert f"ERROR attention plugin is out: {FAULTS[fault]}\n" in log
    assert log.count("INFO building\n") == 2, "the words of both builds"


def test_native_may_be_the_one_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    machine.start_processes("native/build/SIGKILL")
    build = auto(machine, Bundle.open(attention_bundle(tmp_path / "bundle")), []).cached
    native, plugin = build.manifest.build["candidates"]
    assert native["why"] == "its process died of SIGKILL"
    assert plugin["correct"]
    assert build.manifest.build["attention"] == "plugin"
