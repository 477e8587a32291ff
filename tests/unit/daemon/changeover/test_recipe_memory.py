"""Which recipe a restart begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.daemon.changeover.recipe_memory import RecipeMemory
from metal_edge.errors import SettingsError
from metal_edge.settings import LineSettings, RecipeSettings

SETTINGS = LineSettings(
    bundle=Path("b"),
    camera={"kind": "folder"},
    recipes={"other": RecipeSettings(bundle=Path("o"))},
)


def test_the_last_one_that_was_written(tmp_path: Path) -> None:
    memory = RecipeMemory(tmp_path / "line")
    assert memory.read(SETTINGS) == "default"
    assert memory.write("other") is None
    assert RecipeMemory(tmp_path / "line").read(SETTINGS) == "other"


def test_a_place_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "line").write_text("a file where the folder should be")
    assert RecipeMemory(tmp_path / "line").write("other") == "recipe not remembered"


BAD = [b"", b"{", b"[]", b"\xff", b'{"recipe": "gone"}', b'{"recipe": []}', b"[" * 4000]


@pytest.mark.parametrize("content", BAD)
def test_what_does_not_name_a_recipe_is_no_reason_to_guess(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"recipe\.json"):
        RecipeMemory(tmp_path).read(SETTINGS)
