"""One line per promise: the bar, what was measured, reached or missed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

INT8_TIMES, INT8_SIZE = 1.8, 0.3
EAGER_TIMES = 2.0
OVERHEAD_SHARE, OVERHEAD_MS = 0.05, 0.2
RIVAL_TIMES = 5.0
START_S, IMPORT_S = 2.0, 0.5


@dataclass(frozen=True)
class Line:
    """A promise.

    Attributes:
        reached: None where it was not measured, or where its condition does not hold; `note`
            then says why.
    """

    what: str
    bar: str
    measured: str
    reached: bool | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """One word."""
        return {True: "reached", False: "missed", None: "no verdict"}[self.reached]


def times_faster(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> float:
    """Median over turns of slow / fast, pair by pair."""
    return float(np.median(slow / fast))


def int8_speed(fp32: NDArray[np.float64], int8: NDArray[np.float64], vnni: bool) -> Line:
    """Milliseconds per turn of both bundles, batch 1.

    Args:
        vnni: whether this CPU multiplies 8-bit integers natively; else there is no bar.
    """
    ratio = times_faster(fp32, int8)
    return Line(
        "INT8 against FP32, time",
        f">= {INT8_TIMES:g} x faster where the CPU has VNNI",
        f"{ratio:.2f} x ({np.median(fp32):.2f} -> {np.median(int8):.2f} ms)",
        ratio >= INT8_TIMES if vnni else None,
        "" if vnni else "this CPU has no 8-bit dot product (VNNI)",
    )


def int8_size(fp32_bytes: int, int8_bytes: int) -> Line:
    """Sizes of model.onnx."""
    share = int8_bytes / fp32_bytes
    return Line(
        "INT8 against FP32, size",
        f"<= {INT8_SIZE:g} x",
        f"{share:.2f} x ({fp32_bytes / 1e6:.1f} -> {int8_bytes / 1e6:.1f} MB)",
        share <= INT8_SIZE,
    )


def against_eager(name: str, eager: NDArray[np.float64], bundle: NDArray[np.float64]) -> Line:
    """Milliseconds per turn of PyTorch and of a bundle of the same model."""
    ratio = times_faster(eager, bundle)
    return Line(
        f"{name} bundle against PyTorch eager",
        f">= {EAGER_TIMES:g} x faster",
        f"{ratio:.2f} x ({np.median(eager):.2f} -> {np.median(bundle):.2f} ms)",
        ratio >= EAGER_TIMES,
    )


def overhead(name: str, bare: NDArray[np.float64], runner: NDArray[np.float64]) -> Line:
    """Milliseconds per turn of a bare session and of `Runner.run`; median of the differences."""
    more = float(np.median(runner - bare))
    share = more / float(np.median(bare))
    return Line(
        f"Runner.run over a bare session, {name}",
        f"<= {100 * OVERHEAD_SHARE:g} % or {OVERHEAD_MS:g} ms",
        f"{100 * share:+.1f} % ({more:+.3f} ms)",
        share <= OVERHEAD_SHARE or more <= OVERHEAD_MS,
    )


@dataclass(frozen=True)
class Detection:
    """Image and pixel AUROC on the same test pictures, 0..1."""

    image: float
    pixel: float


@dataclass(frozen=True)
class Match:
    """A network of ours against PatchCore, on the same frames.

    Attributes:
        name: of our network.
        theirs: milliseconds per turn of each back end that runs the rival's FP32 export.
        ours: milliseconds per turn of our INT8 bundle, in the same turns.
        what: the rival in words.
        anomalib: whether it is anomalib's own; the bar names that.
    """

    name: str
    theirs: Mapping[str, NDArray[np.float64]]
    ours: NDArray[np.float64]
    their_figures: Detection
    our_figures: Detection
    what: str
    anomalib: bool


def against_rival(match: Match, *, judged: bool) -> Line:
    """The rival in the back end that is fastest for it.

    Args:
        judged: False for a network that the bar is not for; the line then only informs.
    """
    engine = min(match.theirs, key=lambda name: float(np.median(match.theirs[name])))
    theirs, mine, they = match.theirs[engine], match.our_figures, match.their_figures
    ratio = times_faster(theirs, match.ours)
    worse = [name for name in ("image", "pixel") if getattr(mine, name) < getattr(they, name)]
    notes = [f"{match.what}, in {engine}"]
    notes += [
        f"in {name} {np.median(times):.2f} ms"
        for name, times in match.theirs.items()
        if name != engine
    ]
    if worse:
        notes.append(f"{' and '.join(worse)} AUROC is lower than its")
    if not judged:
        notes.append("for information: the bar is for `fast`")
    whose = "anomalib's" if match.anomalib else "the stand-in's"
    return Line(
        f"`{match.name}`, INT8, against PatchCore's FP32 export",
        f">= {RIVAL_TIMES:g} x faster than {whose}, at no lower AUROC",
        f"{ratio:.2f} x ({np.median(theirs):.2f} -> {np.median(match.ours):.2f} ms); image AUROC"
        f" {mine.image:.3f} to {they.image:.3f}, pixel {mine.pixel:.4f} to {they.pixel:.4f}",
        (ratio >= RIVAL_TIMES and not worse) if judged else None,
        "; ".join(notes),
    )


def start(seconds: Sequence[float]) -> Line:
    """Seconds from starting the daemon's process to its first verdict heard over MQTT."""
    return Line(
        "daemon start to first verdict",
        f"<= {START_S:g} s",
        f"{median(seconds):.2f} s (worst of {len(seconds)}: {max(seconds):.2f} s)",
        median(seconds) <= START_S,
    )


def imports(seconds: Sequence[float], heavy: Sequence[str]) -> Line:
    """Seconds to import the daemon's modules; `heavy`: training packages that came along."""
    return Line(
        "import of the daemon's modules",
        f"no torch, <= {IMPORT_S:g} s",
        f"{median(seconds):.2f} s, {'with ' + ', '.join(heavy) if heavy else 'no torch'}",
        median(seconds) <= IMPORT_S and not heavy,
    )


def as_text(lines: Sequence[Line]) -> str:
    """For a terminal."""
    rows = [f"{line.verdict:<10} {line.what}: {line.measured}; bar {line.bar}" for line in lines]
    notes = [f"{'':<10} {line.what}: {line.note}" for line in lines if line.note]
    return "\n".join(rows + notes)


def as_markdown(lines: Sequence[Line]) -> str:
    """For docs/performance.md."""
    rows = ["| | bar | measured | |", "|---|---|---|---|"]
    rows += [
        f"| {line.what} | {line.bar} | {line.measured} |"
        f" {line.verdict}{': ' + line.note if line.note else ''} |"
        for line in lines
    ]
    return "\n".join(rows)
