"""A trial ends once, well or badly, by what a real runner gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_bundle import build_bundle, probe

from metal_edge.bundle import Bundle
from metal_edge.daemon.changeover.trial import TRIAL_INFERENCES, Trial
from metal_edge.daemon.deciding.decision import Rules
from metal_edge.daemon.line.model import Model
from metal_edge.daemon.mqtt.messages import Identity
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner

DARK, BRIGHT = 0, 200  # the faults of the tiny bundles show in bright pictures only
IDENTITY = Identity("root", "session", "cam0", "tiny", "1", "0" * 64, "onnxruntime-fp32")


class Watched:
    """A bundle's runner on trial."""

    def __init__(self, folder: Path, fault: str) -> None:
        self.ended: list[str] = []
        trial = Trial(passed=lambda: self.ended.append("passed"), broke=self.ended.append)
        bundle = Bundle.open(build_bundle(folder, fault=fault))
        model = Model("new", IDENTITY, bundle, load_runner(bundle), Rules(0.5, 1, None))
        self.runner: Runner = trial.watch({"cam0": model})["cam0"].runner


def test_enough_good_inferences_end_it(tmp_path: Path) -> None:
    new = Watched(tmp_path / "bundle", "")
    for _ in range(TRIAL_INFERENCES - 1):
        new.runner.run(probe(BRIGHT))
    assert new.ended == []
    for _ in range(3):
        new.runner.run(probe(BRIGHT))
    assert new.ended == ["passed"]


@pytest.mark.parametrize("fault", ["nan_map", "nan_score"])
def test_numbers_that_mean_nothing_break_it(tmp_path: Path, fault: str) -> None:
    new = Watched(tmp_path / "bundle", fault)
    new.runner.run(probe(DARK))
    new.runner.run(probe(BRIGHT))
    new.runner.run(probe(BRIGHT))
    assert new.ended == ["inference gave numbers that are not finite"]


def test_a_failed_inference_breaks_it_and_is_still_an_error(tmp_path: Path) -> None:
    new = Watched(tmp_path / "bundle", "fails")
    with pytest.raises(Exception, match=r"."):
        new.runner.run(probe(BRIGHT))
    assert len(new.ended) == 1
    assert new.ended[0].startswith("inference failed")


def test_what_comes_after_the_trial_does_not_count(tmp_path: Path) -> None:
    new = Watched(tmp_path / "bundle", "nan_score")
    for _ in range(TRIAL_INFERENCES):
        new.runner.run(probe(DARK))
    new.runner.run(probe(BRIGHT))
    assert new.ended == ["passed"]


@given(st.lists(st.sampled_from([1, 2, 3, 4, 1, 2, 3, 4, 1, None]), max_size=40))
def test_it_ends_at_most_once(outcomes: list[int | None]) -> None:
    """None stands for an inference that failed; a number for a batch of good ones."""
    ended: list[str] = []
    trial = Trial(passed=lambda: ended.append("passed"), broke=ended.append)
    good = 0
    expected: list[str] = []
    for outcome in outcomes:
        if outcome is None:
            trial.bad("why")
            expected = expected or ["why"]
        else:
            trial.good(outcome)
            good += outcome
            if good >= TRIAL_INFERENCES:
                expected = expected or ["passed"]
        assert ended == expected
