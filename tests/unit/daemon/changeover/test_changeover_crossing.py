"""Changes that cross each other. The engines are real; the line swaps when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.broker import wait_until
from support.tiny_bundle import build_bundle, probe

from metal_edge.bundle import Bundle
from metal_edge.daemon.changeover.changeover import Changeover, Outside, Serving
from metal_edge.daemon.changeover.proving import DEFAULT, prove
from metal_edge.daemon.line.model import Done, Models
from metal_edge.daemon.mqtt.commands import Answer, Command
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.shared import Engines
from metal_edge.settings import LineSettings

BRIGHT = 200  # where the poor bundles fail


class Rig:
    """A changeover on three recipes: `default`, `poor` and `poor2`, which fail in service."""

    def __init__(self, folder: Path) -> None:
        self.loaded: list[str] = []
        self.freed: list[str] = []
        self.told: list[str] = []
        self.stored: list[str] = []
        self.answers: list[Answer] = []
        self.store: Callable[[str], str | None] = self.stored.append
        self.after_done: Callable[[], None] | None = None
        self.queue: list[tuple[Models, Done]] = []
        names = {DEFAULT: "", "poor": "nan_score", "poor2": "nan_map"}
        for name, fault in names.items():
            build_bundle(folder / name, fault=fault)
        settings = LineSettings(
            bundle=folder / DEFAULT,
            camera={"kind": "folder"},
            recipes={name: {"bundle": folder / name} for name in ("poor", "poor2")},
        )
        engines = Engines(self._load)
        proven = prove(settings, DEFAULT, "session", engines)
        assert proven is not None
        self.models = proven.models
        outside = Outside(
            engines=engines,
            told=lambda now: self.told.append(now.recipe),
            store=self._store,
            stopping=lambda: False,
        )
        self.changeover = Changeover(Serving(settings, DEFAULT, proven), self, outside)

    def _load(self, bundle: Bundle, threads: int) -> Runner:
        runner = load_runner(bundle, threads)
        self.loaded.append(bundle.path.name)
        return Freed(runner, lambda: self.freed.append(bundle.path.name))

    def _store(self, recipe: str) -> str | None:
        return self.store(recipe)

    def replace_models(self, models: Models, done: Done) -> None:
        """The line's side."""
        self.queue.append((models, done))

    def swap(self) -> None:
        """Between two parts."""
        wait_until(lambda: self.queue, "a swap to be asked for")
        models, done = self.queue.pop(0)
        before, self.models = self.models, models
        done(before)
        after, self.after_done = self.after_done, None
        if after is not None:
            after()

    def change(self, recipe: str) -> Answer | None:
        command = Command("recipe", {"recipe": recipe}, 0, self.answers.append)
        return self.changeover.recipe(command)

    def part(self) -> None:
        self.models["cam0"].runner.run(probe(BRIGHT))

    def no_part(self) -> None:
        """An inference that fails at once."""
        with pytest.raises(ValueError, match="images"):
            self.models["cam0"].runner.run(probe(BRIGHT)[:, :1])

    def answered(self, count: int) -> None:
        wait_until(lambda: len(self.answers) == count, f"answer {count}")


class Freed:
    """A real runner that tells when it is freed."""

    def __init__(self, runner: Runner, freed: Callable[[], None]) -> None:
        self._runner = runner
        self._freed = freed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def __enter__(self) -> Runner:
        return self._runner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._freed()
        self._runner.__exit__(*error)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.changeover.close()
    wait_until(lambda: sorted(rig.freed) == sorted(rig.loaded), "every engine to be freed")


def test_one_change_at_a_time(rig: Rig) -> None:
    assert rig.change("poor") is None
    wait_until(lambda: rig.queue, "the models to be proven")
    busy = rig.change("poor2")
    assert busy is not None
    assert (busy.status, busy.reason) == ("refused", "busy with the change to recipe poor")
    rig.swap()
    rig.answered(1)
    assert rig.answers[0].status == "done"


def test_a_model_that_breaks_while_the_next_one_waits_is_nobody_s_fallback(rig: Rig) -> None:
    rig.change("poor")
    rig.swap()
    rig.answered(1)
    wait_until(lambda: rig.change("poor2") is None, "the first change to be over")
    wait_until(lambda: rig.queue, "poor2 to wait for its swap")
    rig.part()  # poor breaks now
    assert len(rig.queue) == 1  # poor2 takes over anyway
    rig.swap()
    rig.answered(2)
    rig.part()  # poor2 breaks as well
    rig.swap()
    assert rig.told == ["poor", "poor2", DEFAULT]
    assert rig.changeover.problems() == ("recipe poor2 failed in service",)
    wait_until(lambda: rig.stored[-1] == DEFAULT, "the recipe to be remembered")


def test_a_model_that_breaks_at_once_is_taken_out_before_its_change_is_answered(rig: Rig) -> None:
    """The thread that answers has stepped back: the next part may well come before it goes on."""
    rig.change("poor")
    rig.after_done = rig.no_part
    rig.swap()
    rig.swap()
    assert rig.told == ["poor", DEFAULT]


def test_what_is_remembered_is_what_serves_in_the_end(rig: Rig) -> None:
    """Two threads write: one for the change, one for the return."""
    writing = threading.Event()

    def write(recipe: str) -> str | None:
        if recipe == "poor":  # a slow disk
            writing.set()
            wait_until(lambda: len(rig.told) == 2, "the return")
            threading.Event().wait(0.05)
        rig.stored.append(recipe)
        return None

    rig.store = write
    rig.change("poor")
    rig.swap()
    assert writing.wait(10)
    rig.part()
    rig.swap()
    rig.answered(1)
    wait_until(lambda: rig.stored and rig.stored[-1] == DEFAULT, "the recipe to be remembered")
    threading.Event().wait(0.1)
    assert rig.stored[-1] == DEFAULT


def test_a_recipe_that_a_restart_would_forget_is_a_problem(rig: Rig) -> None:
    rig.store = lambda recipe: "recipe not remembered"
    rig.change("poor")
    rig.swap()
    rig.answered(1)
    assert rig.answers[0].status == "done"  # it serves
    assert rig.changeover.problems() == ("recipe not remembered",)


def test_a_line_that_stops_first_leaves_nothing_behind(rig: Rig) -> None:
    rig.change("poor")
    wait_until(lambda: rig.queue, "the models to be proven")
    models, done = rig.queue.pop()
    done(models)
    rig.answered(1)
    assert (rig.answers[0].status, rig.answers[0].reason) == ("failed", "the line stops")
    assert rig.told == []


def test_a_trial_that_ends_well_frees_what_served_before(rig: Rig) -> None:
    rig.change("poor")
    rig.swap()
    rig.answered(1)
    for _ in range(30):
        rig.models["cam0"].runner.run(probe(0))
    wait_until(lambda: rig.freed == [DEFAULT], "the old engine to be freed")
    rig.part()  # too late for a return
    assert rig.queue == []


def test_after_the_end_nothing_begins(rig: Rig) -> None:
    rig.changeover.close()
    refused = rig.change("poor")
    assert refused is not None
    assert (refused.status, refused.reason) == ("refused", "the line stops")
