"""Writes docs/mqtt/: a JSON Schema (2020-12) per payload, and an AsyncAPI 3.0 document.

    python tools/mqtt_docs.py docs/mqtt

Everything comes from the models and tables of the daemon; a test compares.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from metal_edge.daemon.mqtt.command_fields import FIELDS
from metal_edge.daemon.mqtt.commands import MAX_PAYLOAD
from metal_edge.daemon.mqtt.connection import MAX_PACKET
from metal_edge.daemon.mqtt.echo import EchoFields
from metal_edge.daemon.mqtt.payloads import ANSWERS, SAID
from metal_edge.daemon.mqtt.topics import (
    COMMAND,
    CONFIG,
    DECISION,
    ECHO,
    EVENT,
    HEARTBEAT,
    MODEL,
    REPLY,
    STATE,
    Topic,
)
from metal_edge.settings import StationSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"
LEVELS = tuple(StationSettings.model_fields)
ROOT = "/".join(("metal", "v1", *(f"{{{level}}}" for level in LEVELS)))
BINDING = "0.2.0"
OUTGOING = (DECISION, EVENT, HEARTBEAT, STATE, MODEL, CONFIG)

Json = dict[str, Any]


@cache
def schemas() -> dict[str, Json]:
    """By file name, without its ending."""
    said = {name: _outgoing(name, model) for name, model in SAID.items()}
    answers = {
        f"reply-{verb}": _outgoing(f"reply-{verb}", model) for verb, model in ANSWERS.items()
    }
    commands = {f"cmd-{verb}": _schema(f"cmd-{verb}", model) for verb, model in FIELDS.items()}
    return {**said, **commands, **answers, "echo": _schema("echo", EchoFields)}


def _outgoing(name: str, model: type[BaseModel]) -> Json:
    """Open, even where a model of the settings is closed: readers must live with new fields."""
    schema: Json = _opened(_schema(name, model, "serialization"))
    return schema


def _schema(
    name: str, model: type[BaseModel], mode: Literal["validation", "serialization"] = "validation"
) -> Json:
    described = model.model_json_schema(mode=mode)
    return {"$schema": DIALECT, "$id": f"urn:metal-edge:mqtt:1:{name}", **described}


def _opened(value: Any) -> Any:
    if isinstance(value, list):
        return [_opened(item) for item in value]
    if not isinstance(value, dict):
        return value
    closed = value.get("additionalProperties") is False
    return {k: _opened(v) for k, v in value.items() if not (closed and k == "additionalProperties")}


def asyncapi() -> Json:
    """The document, seen from the daemon: it sends what the schemas call outgoing."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "metal-edge station",
            "version": "1",
            "description": (
                "What one inspection station says and hears, over MQTT 5. Rules and reasons:"
                " docs/mqtt.md. A payload of a command is at most"
                f" {MAX_PAYLOAD} bytes; packets over {MAX_PACKET} bytes stay in the broker."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {"broker": _server()},
        "channels": {**_said_channels(), **_command_channels(), "echo": _echo_channel()},
        "operations": {**_send_operations(), **_command_operations(), "echo": _echo_operation()},
        "components": {"messages": _messages(), "schemas": _schema_references()},
    }


def _server() -> Json:
    will = {"topic": f"{ROOT}/{STATE.name}", "qos": STATE.qos, "retain": STATE.retain}
    return {
        "host": "{host}:{port}",
        "protocol": "mqtt",
        "protocolVersion": "5",
        "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "1883"}},
        "bindings": {
            "mqtt": {
                "cleanSession": True,
                "keepAlive": 5,
                "lastWill": {**will, "message": "status = offline, with the session_id"},
                "maximumPacketSize": MAX_PACKET,
                "bindingVersion": BINDING,
            }
        },
    }


def _channel(name: str, address: str | None, *messages: str) -> Json:
    channel: Json = {
        "address": address,
        "messages": {m: {"$ref": f"#/components/messages/{m}"} for m in messages},
    }
    if address is not None:
        channel["parameters"] = {
            level: {"description": f"ISA-95 level: {level}"} for level in LEVELS
        }
    return {name: channel}


def _said_channels() -> Json:
    channels: Json = {}
    for topic in OUTGOING:
        channels |= _channel(topic.name, f"{ROOT}/{topic.name}", topic.name)
    return channels


def _command_channels() -> Json:
    channels: Json = {}
    for verb in FIELDS:
        channels |= _channel(f"cmd-{verb}", f"{ROOT}/{COMMAND.name}/{verb}", f"cmd-{verb}")
        channels |= _channel(f"reply-{verb}", None, f"reply-{verb}")
    return channels


def _echo_channel() -> Json:
    channel: Json = _channel("echo", f"{ROOT}/{ECHO.name}", "echo")["echo"]
    return channel


def _operation(action: str, channel: str, topic: Topic, text: str) -> Json:
    binding: Json = {"qos": topic.qos, "retain": topic.retain}
    if topic.expiry_s is not None:
        binding["messageExpiryInterval"] = topic.expiry_s
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": text,
        "bindings": {"mqtt": {**binding, "bindingVersion": BINDING}},
    }


def _send_operations() -> Json:
    return {
        topic.name: _operation("send", topic.name, topic, _first_line(SAID[topic.name]))
        for topic in OUTGOING
    }


def _command_operations() -> Json:
    operations: Json = {}
    for verb, fields in FIELDS.items():
        operation = _operation("receive", f"cmd-{verb}", COMMAND, _first_line(fields))
        operation["reply"] = {
            "address": {
                "location": "$message.header#/responseTopic",
                "description": f"any topic but the station's own; {REPLY.name}/ below it is free",
            },
            "channel": {"$ref": f"#/channels/reply-{verb}"},
        }
        operations[f"cmd-{verb}"] = operation
    return operations


def _echo_operation() -> Json:
    return _operation("receive", "echo", ECHO, _first_line(EchoFields))


def _messages() -> Json:
    messages: Json = {}
    for name in schemas():
        message: Json = {
            "name": name,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{name}"},
        }
        if name.startswith(("cmd-", "reply-")):
            message["correlationId"] = {"location": "$message.header#/correlationData"}
            message["headers"] = _headers(name)
        messages[name] = message
    return messages


def _headers(name: str) -> Json:
    """MQTT 5 properties, which AsyncAPI calls headers where a location points to them."""
    properties: Json = {"correlationData": {"type": "string", "description": "at most 256 bytes"}}
    if name.startswith("cmd-"):
        properties["responseTopic"] = {"type": "string", "description": "where the answer goes"}
    return {"type": "object", "properties": properties}


def _schema_references() -> Json:
    return {name: {"$ref": f"./{name}.schema.json"} for name in schemas()}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def files() -> dict[str, str]:
    """Every file of docs/mqtt/, by name."""
    content = {f"{name}.schema.json": schema for name, schema in schemas().items()}
    content["asyncapi.json"] = asyncapi()
    return {
        name: json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        for name, value in content.items()
    }


def main() -> int:
    """Writes into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
