"""Each deliberate mistake is noticed: `make test-faults MUTANTS=1`, another quarter of an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark import KeywordMatcher
from _pytest.mark.expression import Expression
from conftest import BUILD
from fault_mutants import MUTANTS


def test_every_scenario_has_a_mistake_that_it_must_notice(request: pytest.FixtureRequest) -> None:
    """Among the scenarios of this run."""
    chosen = [Expression.compile(mutant.noticed_by) for mutant in MUTANTS.values()]
    rows = [item for item in request.session.items if item.get_closest_marker("fault")]
    unproven = [
        item.name
        for item in rows
        if not any(one.evaluate(KeywordMatcher.from_item(item)) for one in chosen)
    ]
    assert unproven == []


@pytest.mark.skipif(not os.environ.get("MUTANTS"), reason="asked for with MUTANTS=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str, tmp_path: Path) -> None:
    """Every scenario chosen fails; one that survives the mistake proves nothing about it."""
    choice = ["-k", MUTANTS[name].noticed_by, f"--basetemp={tmp_path / 'runs'}"]
    options = ["-q", "--timeout=200", "--tb=line", "--show-capture=no", "-p", "no:cacheprovider"]
    environment = {**os.environ, "FAULTS_MUTANT": name, "MUTANTS": "", "FAST": "mutant"}
    environment["FAULTS_REPORT"] = str(tmp_path / "report.md")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *choice, str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.strip().splitlines()[-1]
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / f"mutant-{name}.log").write_text(done.stdout)
    assert done.returncode == 1, done.stdout
    assert "passed" not in said, done.stdout
