"""Deliberate mistakes: each makes the scenarios named with it fail, or they prove nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from support.mutation import mutate


@dataclass(frozen=True)
class Mutant:
    """One mistake, made in one or more places.

    Attributes:
        edits: file below metal_edge, what is there (once), what replaces it.
        noticed_by: what `pytest -k` needs to choose the scenarios; each of them must fail.
    """

    edits: tuple[tuple[str, str, str], ...]
    noticed_by: str


FAIL_OPEN = (
    (
        "demo/gate.py",
        "cause = Cause.NO_DECISION if message",
        "cause = Cause.PASS_VERDICT if message",
    ),
    ("demo/gate.py", "part.fault = part.fault or cause\n\n", "continue\n\n"),
    ("demo/gate.py", "leaves_ns, self.fault, golden", "leaves_ns, None, golden"),
)
DOUBT_PASSES = (
    (
        "demo/gate.py",
        "Verdict.UNKNOWN: Cause.UNKNOWN_VERDICT",
        "Verdict.UNKNOWN: Cause.PASS_VERDICT",
    ),
    ("demo/gate.py", "        if not healthy:\n", "        if healthy is None:\n"),
)
MUTANTS: dict[str, Mutant] = {
    # The gate opens unless somebody objects, as with a valve that is energised to reject.
    "gate-fails-open": Mutant(
        FAIL_OPEN,
        "broker_killed or (broker_hangs and 3) or network_cut or half_open or daemon_hangs_for_good"
        " or decisions_denied or wrong_password or certificate",
    ),
    "gate-passes-doubt": Mutant(
        DOUBT_PASSES,
        "(test_camera and (stall or dead or raise or half or wrong or stale or slow)) or inference",
    ),
    "gate-ignores-pictures": Mutant(
        (("demo/gate.py", "if part.leaves_ns is None or", "if part.leaves_ns is not None or"),),
        "trigger_late",
    ),
    "golden-not-asked": Mutant(
        (
            (
                "demo/line_stop.py",
                "(LineState.STOPPED, LineEvent.NEW_SESSION_ARMED): LineState.CHECKING",
                "(LineState.STOPPED, LineEvent.NEW_SESSION_ARMED): LineState.RUNNING",
            ),
        ),
        "golden_parts",
    ),
    "button-starts-nothing": Mutant(
        (("demo/line_stop.py", "self._happen(LineEvent.OPERATOR)", "return"),),
        "stops_the_line",
    ),
    "outbox-in-memory": Mutant(
        (
            (
                "daemon/records/places.py",
                '/ "outbox.sqlite")\n    if path is None:',
                '/ "outbox.sqlite")\n    if True:',
            ),
        ),
        "an_hour",
    ),
    "decisions-while-silent": Mutant(
        (("daemon/mqtt/publisher.py", "            and self._responsive()\n", ""),),
        "hangs_in_free_run or network_bad",
    ),
    "dead-thread-unnoticed": Mutant(
        (("daemon/mqtt/connection.py", "            self.on_end()\n", "            pass\n"),),
        "callback and thread",
    ),
    "callbacks-unguarded": Mutant(
        (
            ("daemon/mqtt/connection.py", "            self.on_end()\n", "            pass\n"),
            (
                "daemon/mqtt/connection.py",
                "        except Exception:\n            self._failing",
                "        except KeyError:\n            self._failing",
            ),
        ),
        "callback and command",
    ),
    "pictures-unchecked": Mutant(
        (
            (
                "daemon/line/view_worker.py",
                "unlikely = self.view.checks.fault(frame.image)",
                "unlikely = None",
            ),
        ),
        "test_camera and (frozen or black or saturated)",
    ),
    "old-picture-will-do": Mutant(
        (
            (
                "daemon/deciding/decision.py",
                "if not 0 <= now_mono_ns - frame.t_mono_ns <=",
                "if now_mono_ns <",
            ),
            (
                "daemon/deciding/decision.py",
                "if requested_mono_ns is not None and frame.t_mono_ns < requested_mono_ns:",
                "if now_mono_ns < 0:",
            ),
        ),
        "test_camera and stale",
    ),
    "queue-without-bound": Mutant(
        (
            (
                "daemon/line/triggers.py",
                "if len(self._waiting) >= self._capacity:",
                "if self._closed:",
            ),
        ),
        "inference",
    ),
    "duplicates-welcome": Mutant(
        (("daemon/line/triggers.py", "if trigger.trigger_id in self._seen:", "if self._closed:"),),
        "duplicates",
    ),
    "any-id-will-do": Mutant(
        (
            (
                "daemon/mqtt/command_fields.py",
                'pattern=r"^[A-Za-z0-9_.:-]{1,64}$", desc',
                'pattern="", desc',
            ),
        ),
        "garbage",
    ),
    "outbox-trouble-holds-the-line": Mutant(
        (
            (
                "daemon/line/heart.py",
                "Event.FAULT if vitals.faults else",
                "Event.FAULT if problems else",
            ),
        ),
        "test_disk_ or outbox_damaged or events_denied",
    ),
    "refused-events-forgotten": Mutant(
        (("daemon/records/events.py", "        if refusal is None:\n", "        if True:\n"),),
        "events_denied",
    ),
    "budgets-on-the-wall-clock": Mutant(
        (("daemon/clock.py", "return time.monotonic_ns()", "return time.time_ns()"),),
        "clock_step and back",
    ),
    "golden-images-not-proven": Mutant(
        (("runtime/load.py", "if not math.isfinite(score) or off", "if off < 0 and off"),),
        "bad_models",
    ),
    "hashes-unchecked": Mutant(
        (
            (
                "bundle.py",
                "    for name, entry in sorted(manifest.files.items()):",
                "    for name, entry in ():",
            ),
        ),
        "bad_models",
    ),
    "any-version-will-do": Mutant(
        (
            (
                "daemon/changeover/versions.py",
                "if served is not None and is_older",
                "if served is None and is_older",
            ),
        ),
        "bad_models",
    ),
    # What follows is noticed by scenarios that nothing above concerns.
    "echo-never-missed": Mutant(
        (
            (
                "daemon/mqtt/echo.py",
                "return last_ns is not None and now_ns - last_ns > self._timeout_ns",
                "return last_ns is not None and now_ns < last_ns",
            ),
        ),
        "plc_hangs",
    ),
    "denied-decisions-unnoticed": Mutant(
        (
            (
                "daemon/mqtt/echo.py",
                "return self._asked_seq > self._settled_seq",
                "return self._asked_seq < 0",
            ),
        ),
        "decisions_denied",
    ),
    "silence-unnoticed": Mutant(
        (
            (
                "demo/gate.py",
                "if last is not None and now - last >",
                "if last is not None and last - now >",
            ),
        ),
        "(daemon_hangs and not good) or (broker_hangs and 12)",
    ),
    "lock-of-the-dead": Mutant(
        (
            (
                "daemon/records/storage.py",
                "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)\n    try:",
                "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)\n    try:",
            ),
        ),
        "daemon_killed",
    ),
    "time-stamps-of-the-start": Mutant(
        (
            (
                "daemon/clock.py",
                "return time.time_ns()",
                "return time.monotonic_ns() + BEHIND_NS",
            ),
            (
                "daemon/clock.py",
                "class SystemClock:",
                "BEHIND_NS = time.time_ns() - time.monotonic_ns()\n\n\nclass SystemClock:",
            ),
        ),
        "clock_step and forward",
    ),
    "camera-not-opened-again": Mutant(
        (
            (
                "daemon/cameras/reader.py",
                "            self._failed(error)  # told before",
                "            self._stop.set()\n            self._failed(error)  # told before",
            ),
        ),
        "rtsp_stalls or rtsp_killed or gige_killed",
    ),
    "torn-frames-believed": Mutant(
        (
            (
                "daemon/cameras/aravis.py",
                "whole = status == states.SUCCESS",
                "whole = status != states.CLEARED",
            ),
        ),
        "gige_loses_packets",
    ),
    "half-a-change": Mutant(
        (
            (
                "daemon/line/inspector.py",
                "worker.serve(models[worker.view.camera_id])",
                "models[worker.view.camera_id]",
            ),
        ),
        "changeover",
    ),
}


def mutated(source: Path, name: str, target: Path) -> None:
    """A copy of metal_edge below `target` with that mistake in it."""
    shutil.copytree(source / "metal_edge", target / "metal_edge")
    for file, old, new in MUTANTS[name].edits:
        path = target / "metal_edge" / file
        mutate(path, old, new, path)
