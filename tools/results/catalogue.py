"""What is compared with what: models.toml and published.toml, checked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from metal_edge.errors import SettingsError
from metal_edge.models.base import ModelConfig
from metal_edge.models.registry import network_config
from metal_edge.training.config import TrainConfig
from tools.results.patchcore import PatchCoreConfig

HERE = Path(__file__).parent


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Table):
    """One model of models.toml."""

    title: str
    network: dict[str, Any]
    recipe: str | None = None
    training: dict[str, Any] = {}
    published: dict[str, str] = {}


class _Models(_Table):
    recipes: dict[str, dict[str, Any]]
    models: dict[str, Entry]


class PublishedFigure(_Table):
    """One line of published figures; AUROC and AUPRO are 0..1."""

    method: str
    on: str
    image: float | None = None
    pixel: float | None = None
    normalised: float | None = None
    aupro: float | None = None
    source: str
    note: str = ""


Six = Annotated[list[float], Field(min_length=6, max_length=6)]


class Published(_Table):
    """published.toml."""

    figures: tuple[PublishedFigure, ...]
    ablation: dict[str, Six]


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained (seed 0, to be replaced); None: this version lacks it."""

    name: str
    title: str
    network: ModelConfig | None
    training: TrainConfig
    published: dict[str, str]


class Catalogue:
    """The configured models, in the page's order.

    Raises:
        SettingsError: the file is not as models.toml describes.
    """

    def __init__(self, path: Path = HERE / "models.toml") -> None:
        self.path = path
        try:
            self._tables = _Models.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split("\n")[:3])
            raise SettingsError(
                f"{path} cannot be used ({reason})", "see its first lines"
            ) from error

    def variant(self, name: str, minutes: float | None = None) -> Variant:
        """One model.

        Args:
            minutes: training budget in place of the configured one.
        """
        entry = self._tables.models[name]
        return Variant(
            name,
            entry.title,
            _network(entry.network),
            self.recipe(entry.recipe, minutes, **entry.training),
            dict(entry.published),
        )

    def recipe(self, name: str | None, minutes: float | None, **changes: Any) -> TrainConfig:
        """A recipe with changes on top; None is TrainConfig's defaults.

        Raises:
            SettingsError: no such recipe, or a field or value that TrainConfig does not take.
        """
        recipes = self._tables.recipes
        if name is not None and name not in recipes:
            raise SettingsError(f"there is no recipe {name!r}", f"choose one of {_list(recipes)}")
        values = (recipes[name] if name else {}) | changes
        if minutes is not None:
            values["max_minutes"] = minutes
        try:
            return TrainConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise SettingsError(f"{field}: {first['msg']}", f"correct it in {self.path}") from error

    def choose(self, names: Sequence[str] | None) -> list[str]:
        """The named models in the page's order; None is all.

        Raises:
            SettingsError: an unknown name.
        """
        known = list(self._tables.models)
        if names is None:
            return known
        for name in names:
            if name not in known:
                raise SettingsError(f"there is no model {name!r}", f"choose among {_list(known)}")
        return [name for name in known if name in names]


def _network(fields: dict[str, Any]) -> ModelConfig | None:
    """The configuration, or None where this version lacks the kind of network or an option.

    Raises:
        SettingsError: a field that no version takes, or a value out of range.
    """
    config: TypeAdapter[Any] = network_config
    if fields.get("kind") == "patchcore":
        config = TypeAdapter(PatchCoreConfig)
    try:
        return config.validate_python(fields)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] in {"union_tag_invalid", "enum", "literal_error"}:
            return None
        field = ".".join(map(str, first["loc"]))
        raise SettingsError(f"network {field}: {first['msg']}", "correct its table") from error


def published(path: Path = HERE / "published.toml") -> Published:
    """The published figures."""
    return Published.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def _list(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(names)
