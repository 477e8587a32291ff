"""The JSON Schemas of docs/mqtt/ as judges: nothing missing, nothing that is not described."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

FOLDER = Path(__file__).parents[2] / "docs" / "mqtt"


def complaints(name: str, payload: Any) -> list[str]:
    """What is wrong with `payload` as `docs/mqtt/NAME.schema.json` has it, undescribed fields
    included: the published schemas let those pass.
    """
    found = _judge(name).iter_errors(payload)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


@cache
def _judge(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(_closed(schema), format_checker=FormatChecker())


def _closed(value: Any) -> Any:
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _closed(item) for key, item in value.items()}
    if "properties" in inner and isinstance(value.get("type"), str):
        inner.setdefault("additionalProperties", False)
    return inner
