"""One mistake at a time in the attention kernels: the checks have to notice each.

Every mutated copy of kernels/attention is built and run on a few problems, apart from the tests'
own process, two of them at a time.
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from attention_mutations import MUTATIONS, Mutation
from attention_probes import BROKEN, HEAD_DIMS, NOTHING_FOUND, How
from support.mutation import mutated_tree

from tools.kernels import build
from tools.kernels.attention import FOLDER, SOURCES, head_dims_define

ROOT = Path(__file__).parents[3]
PROBES = Path(__file__).with_name("attention_probes.py")
AT_ONCE = 2


@dataclass(frozen=True)
class Outcome:
    """Of the probes on one folder of sources."""

    status: int
    said: str

    @property
    def noticed(self) -> bool:
        return self.status not in (NOTHING_FOUND, BROKEN)


class Prober:
    """A process that runs attention_probes.py, for one check at a time."""

    def __init__(self, how: How) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OPENBLAS_NUM_THREADS": "1",  # forks, and ThreadSanitizer does not know its threads
        }
        if how in ("address", "thread"):
            environment |= build.sanitizer_environment(how)
        self._process = subprocess.Popen(
            [sys.executable, PROBES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def probe(self, folder: Path, how: How, first: str, said: Path) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(folder, how, said, first, file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return Outcome(status, said.read_text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Probers:
    """As many probers of each kind as are busy at once."""

    def __init__(self) -> None:
        self._idle: dict[How, queue.SimpleQueue[Prober]] = {
            how: queue.SimpleQueue() for how in get_args(How)
        }

    def probe(self, folder: Path, how: How, said: Path, first: str = "") -> Outcome:
        if how in ("address", "thread"):  # here, so that the compiler is not sanitized too
            build.host_library(
                [folder / name for name in SOURCES],
                defines=head_dims_define(HEAD_DIMS), sanitizer=how,
            )  # fmt: skip
        try:
            prober = self._idle[how].get_nowait()
        except queue.Empty:
            prober = Prober(how)
        outcome = prober.probe(folder, how, first, said)
        self._idle[how].put(prober)
        return outcome

    def close(self) -> None:
        for idle in self._idle.values():
            while not idle.empty():
                idle.get().close()


@pytest.fixture(scope="module")
def probers() -> Iterator[Probers]:
    made = Probers()
    yield made
    made.close()


def mutate_and_probe(probers: Probers, mutation: Mutation, place: Path) -> Outcome:
    place.mkdir()
    (place / "simt").symlink_to(build.SIMT)
    folder = mutated_tree(FOLDER, mutation.file, mutation.old, mutation.new, place)
    first = mutation.file.removesuffix(".cuh")
    return probers.probe(folder, mutation.how, place / "said", first)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, probers: Probers
) -> Iterator[dict[Mutation, Future[Outcome]]]:
    """Of the selected mutations. The work goes on while the first test waits for its own."""
    selected = [
        item.callspec.params["mutation"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "mutation" in getattr(item, "fixturenames", ())
        and hasattr(item, "callspec")
    ]
    place, number = tmp_path_factory.mktemp("mutations"), itertools.count()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        run = functools.partial(mutate_and_probe, probers)
        yield {
            mutation: pool.submit(run, mutation, place / str(next(number))) for mutation in selected
        }
        pool.shutdown(cancel_futures=True)


def skip_where_tools_lack(how: How) -> None:
    try:
        build.find_gxx()
        if how == "ptx":
            build.find_nvcc()
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("how", get_args(How))
def test_the_kernels_as_they_are_pass(how: How, probers: Probers, tmp_path: Path) -> None:
    skip_where_tools_lack(how)
    outcome = probers.probe(FOLDER, how, tmp_path / "said")
    assert outcome.status == NOTHING_FOUND, outcome.said


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.file}: {each.name}")
def test_mutation_is_noticed(mutation: Mutation, outcomes: dict[Mutation, Future[Outcome]]) -> None:
    skip_where_tools_lack(mutation.how)
    outcome = outcomes[mutation].result()
    assert outcome.noticed, outcome.said
