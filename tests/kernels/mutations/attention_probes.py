"""A few fixed problems that use everything the attention kernels have.

As a script it runs them on altered sources. Each line of its input is `FOLDER HOW SAID FIRST`:
where the sources lie, which check, a file for what it says, and how the names of the problems to
begin with start. A line is answered by a process of its own, forked when everything is imported,
and its status is printed.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from support.attention_cases import Case, assert_close, make_case

from metal_edge.export.masked_attention import Fill
from tools.kernels.attention import HostLibrary, LaunchError, ptx_module, run_host, run_ptx
from tools.ptx import ViolationError

CPU_LIMIT_S = 100
# Exit statuses; others come from crashes, sanitizers and the limit of time, which are findings too.
NOTHING_FOUND, BROKEN, FOUND = 0, 1, 3  # 1: the probes themselves raised, for example a BuildError
HEAD_DIMS = (48,)  # an odd number of 16s: what is left over of int8's 32 is used too
SEEDS = (1, 2)
SLACK = (1, 0)  # a row of NaN after every image
How = Literal["result", "address", "thread", "ptx"]
Run = Callable[[Case], np.ndarray]


def _blocks(groups: int, queries: int, keys: int) -> np.ndarray:
    """Random bits, but whole tiles forbidden, and query 3 without any key."""
    random = np.random.default_rng(queries * keys)
    allowed = random.random((groups, queries, keys)) < 0.4
    allowed[0, :64, 64:128] = False
    allowed[-1, 64:, :64] = False
    allowed[:, 3] = False
    return allowed


def close_cases() -> Iterator[tuple[str, Case]]:
    """Results are judged by their error."""
    for kind in (np.float16, np.int8):
        yield "flash", make_case(
            kind, batch=2, heads=2, queries=70, keys=150, head_dim=48, spread=2.0,
            allowed=_blocks(2, 70, 150), inputs=2, shared_query=True, slack=SLACK,
        )  # fmt: skip
        yield "flash, zero", make_case(
            kind, batch=2, heads=2, queries=21, keys=133, head_dim=48, fill=Fill.ZERO, slack=SLACK,
            allowed=_blocks(2, 21, 133),
        )  # fmt: skip
        yield (
            "flash, no key",
            make_case(
                kind,
                batch=2,
                queries=64,
                keys=130,
                head_dim=48,
                allowed=np.zeros((64, 130), np.bool_),
            ),
        )
        one_tile = np.zeros((20, 130), np.bool_)
        one_tile[:, :60] = True
        yield (
            "flash, one tile",
            make_case(kind, batch=5, queries=20, keys=130, head_dim=48, allowed=one_tile),
        )
        for keys in (50, 101):
            yield f"short, {keys} keys", make_case(
                kind, batch=2, heads=2, queries=33, keys=keys, head_dim=48, spread=2.0,
                allowed=_blocks(2, 33, keys), slack=SLACK,
            )  # fmt: skip
        yield "short, zero", make_case(
            kind, batch=2, heads=2, queries=33, keys=101, head_dim=48, fill=Fill.ZERO, slack=SLACK,
        )  # fmt: skip
        # So far from the scale of the values that results are cut off at -128 and 127.
        if kind == np.int8:
            yield (
                "short, clamped",
                make_case(kind, batch=2, queries=33, keys=20, head_dim=48, out_scale=0.004),
            )
            yield (
                "flash, clamped",
                make_case(kind, batch=2, queries=33, keys=130, head_dim=48, out_scale=0.002),
            )
    # Scores that lie hundreds apart: what is not relative to their maximum overflows.
    for keys in (101, 150):
        yield (
            f"{'short' if keys < 128 else 'flash'}, far apart",
            make_case(np.float16, batch=3, queries=33, keys=keys, head_dim=48, spread=8.0),
        )
    yield "flash, bias", make_case(
        np.float16, heads=2, queries=140, keys=140, head_dim=48, inputs=1,
        slopes=(1.0, 0.25), columns=12, allowed=_blocks(2, 140, 140),
    )  # fmt: skip
    yield "short, bias", make_case(
        np.float16, batch=2, heads=2, queries=64, keys=64, head_dim=48, inputs=1,
        slopes=(1.0, 0.25), columns=7, slack=SLACK,
    )  # fmt: skip
    far = np.zeros((16, 2200), np.bool_)
    far[:, [5, 70, 2060, 2190]] = True
    yield (
        "flash, 33 tiles",
        make_case(np.float16, batch=1, queries=16, keys=2200, head_dim=48, allowed=far),
    )
    for kind, head_dim in ((np.float32, 48), (np.float32, 144), (np.float16, 144)):
        yield f"plain, {head_dim}", make_case(
            kind, batch=2, heads=2, queries=9, keys=70, head_dim=head_dim,
            allowed=_blocks(2, 9, 70), inputs=2, shared_query=True, slack=SLACK,
        )  # fmt: skip
    yield (
        "plain, zero",
        make_case(
            np.float32,
            batch=2,
            heads=2,
            queries=9,
            keys=43,
            head_dim=48,
            fill=Fill.ZERO,
            slack=SLACK,
        ),
    )
    yield (
        "plain, bias",
        make_case(
            np.float32,
            batch=2,
            heads=2,
            queries=35,
            keys=35,
            head_dim=48,
            slopes=(1.0, 0.25),
            columns=6,
        ),
    )


def poisoned_cases() -> Iterator[tuple[str, Case]]:
    """One element that is not finite: in query 2, key 2 or value 2."""
    sizes = [
        ("flash", np.float16, 130, 48), ("short", np.float16, 30, 48),
        ("plain", np.float32, 30, 48), ("plain", np.float16, 30, 144),
    ]  # fmt: skip
    for kernel, kind, keys, head_dim in sizes:
        # With positive queries, products with a key of -inf are -inf: a weight of 0 would hide it.
        for index, (part, value) in enumerate(
            (("query", np.nan), ("key", -np.inf), ("value", np.nan))
        ):
            case = make_case(kind, queries=24, keys=keys, head_dim=head_dim)
            np.abs(case.tensors[0], out=case.tensors[0])
            case.tensors[index][0, 2] = value
            yield f"{kernel}, {part} is {value}, {head_dim}", case


def check_poisoned(result: np.ndarray, case: Case) -> None:
    """What looks at the element must be NaN."""
    allowed = case.spec.allowed[0]
    query, *_ = (not np.isfinite(each).all() for each in case.tensors)
    looks = allowed.any(axis=1) & (np.arange(len(allowed)) == 2) if query else allowed[:, 2]
    assert looks.any()
    assert np.isnan(result[0, looks]).all(), "what is not finite was turned into numbers"


# Sanitizers and the interpreter need no luck with numbers: a few problems reach all code.
FEW = {
    "address": ("flash, zero", "flash, no key", "short, 50 keys", "short, 101 keys", "plain, 48"),
    "thread": ("flash, zero", "flash, one tile", "short, 50 keys", "plain, 48"),
    "ptx": ("flash, zero", "short, 50 keys"),
}


def find(folder: Path, how: How, first: str = "") -> str | None:
    """The first finding, or None; begins with the problems whose names start with `first`."""
    sanitizer = how if how in ("address", "thread") else None
    library = HostLibrary(HEAD_DIMS, sanitizer, folder, quick=how == "result")
    problems = sorted(_problems(), key=lambda problem: not problem[0].startswith(first))
    for run in _runs(library, folder, how):
        for name, case, check in problems:
            if how != "result" and name not in FEW[how]:
                continue
            try:
                check(run(case), case)
            except (AssertionError, LaunchError, ViolationError) as error:
                return f"{name}: {error}"
    return None


@functools.cache
def _problems() -> list[tuple[str, Case, Callable[[np.ndarray, Case], None]]]:
    return [
        *((name, case, assert_close) for name, case in close_cases()),
        *((name, case, check_poisoned) for name, case in poisoned_cases()),
    ]


def _runs(library: HostLibrary, folder: Path, how: How) -> Iterator[Run]:
    if how == "ptx":
        module = ptx_module(HEAD_DIMS, folder=folder)
        yield lambda case: run_ptx(library, module, case.tensors, case.spec, seed=1)[0]
    elif how == "result":
        for seed in SEEDS:
            yield functools.partial(_run_host, library, seed=seed)
    else:  # without slack: AddressSanitizer knows where memory ends
        yield lambda case: run_host(library, case.tensors, case.spec, seed=1)


def _run_host(library: HostLibrary, case: Case, seed: int) -> np.ndarray:
    return run_host(library, case.tensors, case.spec, seed=seed, slack=case.slack)


def _serve() -> None:
    _problems()
    for line in sys.stdin:
        folder, how, said, *first = line.split()
        child = os.fork()
        if child == 0:
            with Path(said).open("w") as file:
                os.dup2(file.fileno(), sys.stdout.fileno())
                os.dup2(file.fileno(), sys.stderr.fileno())
            # A mutated kernel may not come to an end.
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
            found = find(Path(folder), how, "".join(first))  # type: ignore[arg-type]
            print(found or "nothing found", flush=True)
            os._exit(NOTHING_FOUND if found is None else FOUND)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
