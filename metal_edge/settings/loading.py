"""From a TOML file and the environment to settings, or to an error that names the key."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from metal_edge.errors import MissingInputError, SettingsError
from metal_edge.settings.camera import CameraSettings, ViewSettings
from metal_edge.settings.line import LineSettings, RecipeSettings


def load_settings(path: Path) -> LineSettings:
    """Reads `path` (TOML) and the environment.

    Relative paths in the file are taken from the file's own folder, so a service and a shell
    started elsewhere read the same thing.

    Raises:
        MissingInputError: no such file.
        SettingsError: not TOML, an unknown key, or a value out of range; names the key.
    """
    if not path.is_file():
        raise MissingInputError(f"settings file {path} not found", "give an existing TOML file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML ({error})", "correct that line") from error
    try:
        settings = LineSettings(**values)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_first_problem(error)}", _remedy(error)) from error
    return _resolve_paths(settings, path.parent)


CameraT = TypeVar("CameraT", bound=CameraSettings)


def _resolve_paths(settings: LineSettings, base: Path) -> LineSettings:
    def absolute(value: Path | None) -> Path | None:
        return None if value is None else (base / value.expanduser()).resolve()

    mqtt_paths = ("username_file", "password_file", "ca_file", "cert_file", "key_file")
    mqtt = settings.mqtt.model_copy(
        update={
            name: _credential(getattr(settings.mqtt, name))
            or absolute(getattr(settings.mqtt, name))
            for name in mqtt_paths
        }
    )

    def camera(value: CameraT) -> CameraT:
        update: dict[str, Any] = {}
        if value.kind in {"folder", "video"} and value.uri:
            update["uri"] = str(absolute(Path(value.uri)))
        if isinstance(value, ViewSettings):
            update["bundle"] = absolute(value.bundle)
        return value.model_copy(update=update)

    def recipe(value: RecipeSettings) -> RecipeSettings:
        views = {
            name: view.model_copy(update={"bundle": absolute(view.bundle)})
            for name, view in value.views.items()
        }
        return value.model_copy(update={"bundle": absolute(value.bundle), "views": views})

    return settings.model_copy(
        update={
            "bundle": absolute(settings.bundle),
            "mqtt": mqtt,
            "camera": camera(settings.camera),
            "views": tuple(camera(view) for view in settings.views),
            "recipes": {name: recipe(value) for name, value in settings.recipes.items()},
            "outbox": settings.outbox.model_copy(update={"path": absolute(settings.outbox.path)}),
            "evidence": settings.evidence.model_copy(
                update={"path": absolute(settings.evidence.path)}
            ),
        }
    )


def _credential(value: Path | None) -> Path | None:
    """The systemd credential of that name, if the service was given one (systemd.exec(5)).

    Only a bare name can be one, and the credential comes before a file beside the settings.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if value is None or not folder or value.name != str(value):
        return None
    credential = Path(folder) / value
    return credential if credential.is_file() else None


def _first_problem(error: ValidationError) -> str:
    """All problems in one line, each with its dotted key."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        parts.append(f"{key}: {what}")
    return "; ".join(parts)


def _remedy(error: ValidationError) -> str:
    unknown = [e for e in error.errors() if e["type"] == "extra_forbidden"]
    if not unknown:
        return "correct the value (docs/settings.md lists every key)"
    name = str(unknown[0]["loc"][-1])
    near = difflib.get_close_matches(name, _all_keys(), n=1)
    return f"did you mean {near[0]!r}?" if near else "remove it (docs/settings.md lists every key)"


def _all_keys() -> list[str]:
    keys: list[str] = []
    todo: list[Any] = [LineSettings]
    while todo:
        for name, info in todo.pop().model_fields.items():
            keys.append(name)
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                todo.append(info.annotation)
    return keys
