"""Where a bundle's time goes on one pinned thread, by ONNX Runtime's own profile.

python -m tools.bench.profile BUNDLE [--frames 60]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from metal_edge.bundle import Bundle
from metal_edge.cli.console import say_result
from metal_edge.runtime.onnxruntime_runner import DISABLED_OPTIMIZERS
from tools.bench.timing import one_pinned_thread

_WARM_UP = 10
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Share:
    """All nodes of one operator.

    Attributes:
        ms: the sum of their medians over the frames.
    """

    operator: str
    nodes: int
    ms: float


def profile(bundle: Bundle, frames: int) -> list[Share]:
    """Shares of a frame of noise, largest first. The profile's own cost is in every node."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder, one_pinned_thread():
        options.profile_file_prefix = str(Path(folder) / "profile")
        session: Any = ort.InferenceSession(
            str(bundle.model_path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
        (image,) = session.get_inputs()
        noise = np.random.default_rng(0).integers(0, 256, (1, *image.shape[1:]), dtype=np.uint8)
        for _ in range(_WARM_UP + frames):
            session.run(["anomaly_map", "score"], {image.name: noise})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return shares(events)


def shares(events: Iterable[dict[str, Any]]) -> list[Share]:
    """From ONNX Runtime's trace events; the first calls of each node warm up and do not count."""
    took: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            node = (event["args"]["op_name"], event["name"])
            took.setdefault(node, []).append(event["dur"] / 1000)
    totals: dict[str, list[float]] = {}
    for (operator, _), ms in took.items():
        totals.setdefault(operator, []).append(float(np.median(ms[_WARM_UP:])))
    found = [Share(operator, len(ms), sum(ms)) for operator, ms in totals.items()]
    return sorted(found, key=lambda share: -share.ms)


def table(found: list[Share]) -> str:
    """Markdown."""
    whole = sum(share.ms for share in found)
    rows = [
        f"| {share.operator} | {share.nodes} | {share.ms:.2f} | {share.ms / whole:.1%} |"
        for share in found
    ]
    return "\n".join(
        [
            "| operator | nodes | ms | share |",
            "|---|---|---|---|",
            *rows,
            f"| all | {sum(share.nodes for share in found)} | {whole:.2f} | |",
        ]
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    given = parser.parse_args()
    say_result(table(profile(Bundle.open(given.bundle), max(1, given.frames))))


if __name__ == "__main__":
    main()
