"""Prints docs/settings.md from the settings' own fields: `python tools/settings_doc.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from metal_edge.settings import CameraSettings, LineSettings, ViewSettings

SECTIONS: dict[str, type[BaseModel]] = {"camera": CameraSettings}
BASES: dict[type[BaseModel], str] = {ViewSettings: "camera"}

HEAD = """# Settings of a line

One TOML file per line, given to `metal-edge run --config`. Unknown keys are refused. Every key
can be overridden from the environment: `[mqtt] host` is `METAL_EDGE_MQTT__HOST`. Relative paths
count from the file's folder. `systemd/metal-edge.example.toml` is a complete example.

This page is made by `python tools/settings_doc.py`; a test compares.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_section("Top level", LineSettings, "", ""))


def _section(title: str, model: type[BaseModel], prefix: str, skip: str) -> Iterator[str]:
    """One table, then the sections inside it; `skip`: fields of this base are told elsewhere."""
    told = SECTIONS[skip].model_fields if skip else {}
    fields = {name: field for name, field in model.model_fields.items() if name not in told}
    plain = [_row(name, field) for name, field in fields.items() if _inner(field) is None]
    text = f"\n## {title}\n\n"
    if prefix:
        text += f"{(model.__doc__ or '').strip()}\n\n"
    if skip:
        text += f"All keys of `[{skip}]`, and:\n\n"
    yield text + _table(plain)
    for name, field in fields.items():
        inner = _inner(field)
        if inner is not None:
            kind, shape = inner
            path = f"{prefix}.{name}".lstrip(".") + (".NAME" if shape == "dict" else "")
            title = f"[[{path}]]" if shape == "tuple" else f"[{path}]"
            yield from _section(title, kind, path, BASES.get(kind, ""))


def _inner(field: FieldInfo) -> tuple[type[BaseModel], str] | None:
    """The section in a field, and whether it stands alone, in a list or under names."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, ""
    origin, inside = get_origin(kind), get_args(kind)
    for part in inside:
        if origin in {tuple, dict} and isinstance(part, type) and issubclass(part, BaseModel):
            return part, origin.__name__
    return None


def _table(rows: list[str]) -> str:
    return "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_shown(field)}`"
    return f"| `{name}` | {default} | {(field.description or '').replace('|', 'or')} |"


def _shown(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "none"
    if value in ("", {}, ()):
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
