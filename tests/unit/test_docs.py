"""What the command says of itself is true, and README names every command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from metal_edge.cli.app import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]  # a group has them
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_parse(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    _, *examples = text.split("Example: ")
    assert examples, text
    for example in examples:
        program, command, *words = shlex.split(example)
        assert (program, command) == ("metal-edge", name)
        COMMANDS[name].make_context(name, words)  # raises on an unknown option


def test_every_choice_about_a_plan_has_an_example() -> None:
    shown = CliRunner().invoke(app, ["build-engine", "--help"])
    examples = shown.output.partition("Example: ")[2]
    for option in ("--precision", "--attention", "--workspace", "--timing-cache"):
        assert option in examples


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    bare = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None)]
    assert not bare


def test_readme_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"metal-edge {name}" not in text]


def test_the_settings_page_is_current() -> None:
    root = README.parent
    made = subprocess.run(
        [sys.executable, root / "tools" / "settings_doc.py"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.stdout == (root / "docs" / "settings.md").read_text(encoding="utf-8")
