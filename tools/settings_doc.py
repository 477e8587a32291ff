"""Prints docs/settings.md from the settings' own fields: `python tools/settings_doc.py`."""

from __future__ import annotations

import sys

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from metal_edge.settings import LineSettings

HEAD = """# Settings of a line

One TOML file per line, given to `metal-edge run --config`. Unknown keys are refused. Every key
can be overridden from the environment: `[mqtt] host` is `METAL_EDGE_MQTT__HOST`. Relative paths
count from the file's folder. `systemd/metal-edge.example.toml` is a complete example.

This page is made by `python tools/settings_doc.py`; a test compares.
"""


def page() -> str:
    """The whole page."""
    top: list[str] = []
    sections: list[str] = []
    for name, field in LineSettings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows = [_row(key, info) for key, info in kind.model_fields.items()]
            sections.append(f"\n## [{name}]\n\n{(kind.__doc__ or '').strip()}\n\n{_table(rows)}")
        else:
            top.append(_row(name, field))
    return HEAD + "\n## Top level\n\n" + _table(top) + "".join(sections)


def _table(rows: list[str]) -> str:
    return "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_shown(field)}`"
    return f"| `{name}` | {default} | {(field.description or '').replace('|', 'or')} |"


def _shown(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "none"
    if value in ("", {}):
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
