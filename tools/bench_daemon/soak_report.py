"""What a soak's samples say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from tools.bench_daemon.soak import FLAT, QUARTERS, Sample


def judge(samples: Sequence[Sample], counts: Mapping[str, float], faults: bool) -> tuple[str, bool]:
    """A table, and whether all bars are reached.

    The first quarter warms up; then the last quarter is held against the second: memory by its
    median, so that one sample in a reconnection decides nothing, threads and descriptors by their
    highest, of which a leak leaves more each time.
    """
    size = len(samples) // QUARTERS
    early, late = samples[size : 2 * size], samples[-size:]
    before, after = (median(s.rss_kib for s in part) for part in (early, late))
    growth = after / before - 1
    threads = [max(s.threads for s in part) for part in (early, late)]
    descriptors = [max(s.descriptors for s in part) for part in (early, late)]
    decided = counts["last_decision_seq"]
    seconds = samples[-1].at_s
    rows = [
        (
            "resident memory flat within 2 %",
            f"{before / 1024:.1f} MiB, then {after / 1024:.1f} MiB: {100 * growth:+.2f} %",
            growth <= FLAT,
        ),
        ("no more threads", f"{threads[0]}, then {threads[1]}", threads[1] <= threads[0]),
        (
            "no more descriptors",
            f"{descriptors[0]}, then {descriptors[1]}",
            descriptors[1] <= descriptors[0],
        ),
        (
            "it decides all the time",
            f"{decided:.0f} parts, {decided / seconds:.0f} a second",
            decided > seconds,
        ),
        (
            "no audit event lost",
            f"{counts['events_dropped']:.0f} dropped",
            not counts["events_dropped"],
        ),
    ]
    lines = ["| bar | measured | reached |", "|---|---|---|"]
    lines += [f"| {bar} | {found} | {'yes' if good else 'no'} |" for bar, found, good in rows]
    how = f"{len(samples)} samples; last quarter against second."
    if faults:
        how += f" Broker killed {counts['broker restarts']:.0f} times, camera lost now and then."
    how += (
        f" {counts['frames_dropped']:.0f} frames beyond the rate dropped and counted,"
        f" {counts['decisions_dropped']:.0f} decisions while no broker answered."
    )
    return "\n".join([*lines, "", how]), all(good for _, _, good in rows)
