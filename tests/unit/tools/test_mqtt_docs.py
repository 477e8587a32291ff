"""docs/mqtt/ is what the code says, and consistent in itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from metal_edge.daemon.mqtt import topics as topics_module
from metal_edge.daemon.mqtt.command_fields import FIELDS
from metal_edge.daemon.mqtt.commands import CommandError, read_fields
from metal_edge.daemon.mqtt.topics import Topic
from tools.mqtt_docs import files, schemas

FOLDER = Path(__file__).parents[3] / "docs" / "mqtt"


def test_the_folder_is_current() -> None:
    """Remake with `python tools/mqtt_docs.py docs/mqtt`."""
    there = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert there == files()


@pytest.mark.parametrize("name", schemas())
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = json.loads(files()["asyncapi.json"])
    found = list(references(document))
    for reference in found:
        if reference.startswith("./"):
            assert (FOLDER / reference).is_file(), reference
            continue
        value = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in value, reference
            value = value[step]
    assert len(found) > 50


def test_every_message_has_a_channel_and_every_channel_an_operation() -> None:
    document = json.loads(files()["asyncapi.json"])
    told = {m for channel in document["channels"].values() for m in channel["messages"]}
    assert told == set(schemas())
    used = set()
    for operation in document["operations"].values():
        used.add(operation["channel"]["$ref"].rpartition("/")[2])
        if "reply" in operation:
            used.add(operation["reply"]["channel"]["$ref"].rpartition("/")[2])
    assert used == set(document["channels"])


def outgoing() -> list[str]:
    return [name for name in schemas() if not name.startswith(("cmd-", "echo"))]


@pytest.mark.parametrize("name", outgoing())
def test_readers_may_live_with_fields_to_come(name: str) -> None:
    assert '"additionalProperties": false' not in files()[f"{name}.schema.json"]


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("trigger", {"trigger_id": "t", "part_id": "p"}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "deadline_ms": 20, "encoder": -5}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "deadline_ms": None}),
        ("trigger", {"trigger_id": "t", "part_id": "a/b"}),
        ("trigger", {"trigger_id": "t" * 65, "part_id": "p"}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "deadline_ms": 0}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "deadline_ms": "5"}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "encoder": 2**32}),
        ("trigger", {"trigger_id": "t"}),
        ("trigger", {"trigger_id": "t", "part_id": "p", "more": 1}),
        ("recipe", {"recipe": "flange-top"}),
        ("recipe", {"recipe": "../x"}),
        ("arm", {}),
        ("arm", {"by": "me"}),
        ("disarm", {"reason": "x" * 201}),
        ("snapshot", {}),
        ("golden-check", {}),
    ],
)
def test_the_daemon_takes_what_the_schema_takes(verb: str, fields: dict[str, Any]) -> None:
    valid = Draft202012Validator(schemas()[f"cmd-{verb}"]).is_valid(fields)
    try:
        read_fields(verb, json.dumps(fields).encode())
    except CommandError:
        assert not valid
    else:
        assert valid


def test_the_pages_table_of_topics_is_the_codes() -> None:
    page = (FOLDER.parent / "mqtt.md").read_text(encoding="utf-8")
    rows = dict[str, tuple[int, bool, str]]()
    for row in page.partition("## Topics")[2].partition("## Commands")[0].splitlines():
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            name = cells[0].strip("`").partition("/")[0]
            rows[name] = (int(cells[2]), cells[3] == "yes", cells[4])
    shown = {None: "-", 1: "1 s", 10: "10 s", 7 * 24 * 3600: "7 d"}
    topics = [value for value in vars(topics_module).values() if isinstance(value, Topic)]
    assert rows == {t.name: (t.qos, t.retain, shown[t.expiry_s]) for t in topics}


def test_the_page_names_every_verb_with_its_fields() -> None:
    page = (FOLDER.parent / "mqtt.md").read_text(encoding="utf-8")
    table = page.partition("## Commands")[2].partition("```")[0]
    for verb, model in FIELDS.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{verb}` |")]
        fields = row.split("|")[2]
        assert set(re.findall(r"`([a-z_]+)`", fields)) == set(model.model_fields), verb
