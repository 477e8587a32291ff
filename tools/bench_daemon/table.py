"""Bars, and what was measured, as one table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tools.bench_daemon.measure import Added, Sustained

P50_MS, P99_MS = 1.5, 6.0
WITHIN = 0.10  # of the bare engine's rate


def as_markdown(added: Added, rate: Sustained) -> str:
    """`bar | measured | reached`, and the latency by its parts."""
    p50, p99 = np.percentile(added.total, [50, 99])
    share = float(np.median(rate.daemon / rate.bare))
    engine_ms = float(np.median(1e3 / rate.bare))
    own_ms = float(np.median(1e3 / rate.daemon)) - engine_ms
    books = rate.offered == rate.decided + rate.dropped and rate.wrong == 0
    rows = [
        ("latency that we add, p50 <= 1.5 ms", f"{p50:.2f} ms", p50 <= P50_MS),
        ("the same, p99 <= 6 ms", f"{p99:.2f} ms", p99 <= P99_MS),
        (
            "sustained rate within 10 % of the bare engine",
            f"{np.median(rate.daemon):.1f} of {np.median(rate.bare):.1f} pictures/s,"
            f" {100 * share:.1f} % (median of {rate.bare.size} pairs); {engine_ms:.1f} ms a picture"
            f" alone, {own_ms:+.1f} ms in the daemon",
            share >= 1 - WITHIN,
        ),
        (
            "every excess frame counted",
            f"{rate.offered} offered = {rate.decided} decided + {rate.dropped} dropped;"
            f" {rate.beats - rate.wrong} of {rate.beats} heartbeats add up",
            books,
        ),
    ]
    lines = ["| bar | measured | reached |", "|---|---|---|"]
    lines += [f"| {bar} | {found} | {'yes' if ok else 'no'} |" for bar, found, ok in rows]
    parts = {
        "all of it": added.total,
        "hand-over: callback to payload, but for inference and post": added.hand_over,
        "post: map to verdict": added.post,
        "payload to subscriber: event note, JSON, socket, broker": added.broker,
    }
    lines += ["", f"| ms, {added.total.size} decisions | p50 | p90 | p99 | max |"]
    lines += ["|---|---|---|---|---|"]
    lines += [f"| {name} | {_quantiles(values)} |" for name, values in parts.items()]
    return "\n".join(lines)


def _quantiles(values: NDArray[np.float64]) -> str:
    return " | ".join(f"{v:.2f}" for v in np.percentile(values, [50, 90, 99, 100]))
