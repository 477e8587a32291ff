"""Which recipe a line was making, over a restart: another one would judge the wrong product."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from metal_edge.daemon.changeover.proving import DEFAULT
from metal_edge.errors import OutputError, SettingsError
from metal_edge.files import write_text
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

MAX_BYTES = 1024


class RecipeMemory:
    """A small file in the line's state folder.

    Args:
        folder: None where there is no such place: a restart then begins with `default`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "recipe.json"

    def read(self, settings: LineSettings) -> str:
        """The recipe to begin with.

        Raises:
            SettingsError: the file cannot be read, or names a recipe that is gone. Beginning with
                another one would be a guess.
        """
        if self._path is None or not self._path.exists():
            return DEFAULT
        remedy = f"repair it, or remove {self._path} to begin with the default"
        try:
            with self._path.open("rb") as file:
                recipe = json.loads(file.read(MAX_BYTES))["recipe"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SettingsError(f"{self._path} cannot be read ({error!r})", remedy) from error
        if not isinstance(recipe, str) or (recipe != DEFAULT and recipe not in settings.recipes):
            raise SettingsError(
                f"recipe {recipe!r} was in use, and is not in the settings any more", remedy
            )
        return recipe

    def write(self, recipe: str) -> str | None:
        """Remembers. What goes wrong is logged, and given back as a problem in a few words."""
        if self._path is None:
            log.warning("no state directory: a restart would begin with recipe %s", DEFAULT)
            return None
        try:
            write_text(self._path, json.dumps({"recipe": recipe}) + "\n")
        except OutputError as error:
            log.error("recipe %s is not remembered over a restart: %s", recipe, error)
            return "recipe not remembered"
        return None
