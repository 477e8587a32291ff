"""One line's settings: TOML plus environment, frozen, unknown keys forbidden.

Environment variables override the file: `METAL_EDGE_MQTT__HOST=broker.local` sets `[mqtt] host`.
"""

from __future__ import annotations

import difflib
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from metal_edge.errors import MissingInputError, SettingsError

# ISA-95 levels become MQTT topic levels, so the characters with a meaning there are refused.
Level = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CameraMode(StrEnum):
    """`triggered`: one verdict per trigger. `latest`: free run, newest frame wins."""

    TRIGGERED = "triggered"
    LATEST = "latest"


class StationSettings(_Section):
    """Where this camera stands, in ISA-95 order; becomes the MQTT root topic."""

    enterprise: Level = "enterprise"
    site: Level = "site"
    area: Level = "area"
    line: Level = "line"
    station: Level = "station"

    @property
    def topic_root(self) -> str:
        """`metal/v1/{enterprise}/{site}/{area}/{line}/{station}`."""
        levels = (self.enterprise, self.site, self.area, self.line, self.station)
        return "/".join(("metal", "v1", *levels))


class CameraSettings(_Section):
    """Which camera, and how long it may take."""

    kind: str = Field(description="folder | video | v4l2 | rtsp, or a registered camera's name")
    uri: str = Field(
        default="", description="folder, file, /dev/video0, rtsp://... as the kind needs"
    )
    mode: CameraMode = Field(
        default=CameraMode.TRIGGERED,
        description="triggered: one verdict per trigger; latest: free run, newest frame wins",
    )
    camera_id: Level = Field(default="cam0", description="named in every message")
    timeout_s: float = Field(default=1.0, gt=0, le=60, description="longest wait for one frame")
    fps: float = Field(default=10.0, gt=0, le=1000, description="pace of file cameras in free run")
    loop: bool = Field(default=False, description="file cameras: begin again at the end")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="passed on to a registered camera"
    )


class MqttSettings(_Section):
    """The broker. TLS is on as soon as `ca_file` is set."""

    host: str = Field(default="127.0.0.1", description="name or address of the broker")
    port: int = Field(default=1883, ge=1, le=65535, description="usually 8883 with TLS")
    username: str | None = Field(default=None, description="needs password_file")
    password_file: Path | None = Field(
        default=None, description="file with the password; never the password itself"
    )
    ca_file: Path | None = Field(default=None, description="CA certificates; turns TLS on")
    cert_file: Path | None = Field(default=None, description="own certificate, for mTLS")
    key_file: Path | None = Field(default=None, description="its private key")
    keepalive_s: int = Field(
        default=5, ge=1, le=120, description="MQTT keepalive: how soon a dead peer is noticed"
    )
    connect_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="at start; later it reconnects for ever"
    )
    event_queue: int = Field(
        default=1000, ge=1, le=100_000, description="audit events kept while the broker is away"
    )

    @model_validator(mode="after")
    def _pairs(self) -> MqttSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.username is not None and self.password_file is None:
            raise ValueError("username needs password_file")
        return self


class DecisionSettings(_Section):
    """How a score becomes a verdict. The threshold itself lives in the bundle."""

    deadline_ms: float = Field(
        default=500.0, gt=0, le=60_000, description="trigger to verdict; later is `unknown`"
    )
    max_frame_age_ms: float = Field(
        default=1000.0, gt=0, le=60_000, description="an older frame is stale and gives `unknown`"
    )
    trigger_queue: int = Field(default=8, ge=1, le=1024, description="overflow is `unknown`")


class RuntimeSettings(_Section):
    """The inference back end."""

    threads: int = Field(default=1, ge=1, le=64, description="ONNX Runtime intra-op threads")


class LineSettings(BaseSettings):
    """Everything the daemon needs for one line."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="METAL_EDGE_",
        env_nested_delimiter="__",
    )

    bundle: Path = Field(description="the folder that `metal-edge build-engine` wrote")
    station: StationSettings = StationSettings()
    camera: CameraSettings
    mqtt: MqttSettings = MqttSettings()
    decision: DecisionSettings = DecisionSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    heartbeat_hz: float = Field(default=5.0, ge=1, le=50, description="heartbeats per second")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then whatever was given (the file's content); no dotenv."""
        return (env_settings, init_settings)


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


def _resolve_paths(settings: LineSettings, base: Path) -> LineSettings:
    def absolute(value: Path | None) -> Path | None:
        return None if value is None else (base / value.expanduser()).resolve()

    mqtt_paths = ("password_file", "ca_file", "cert_file", "key_file")
    mqtt = settings.mqtt.model_copy(
        update={name: absolute(getattr(settings.mqtt, name)) for name in mqtt_paths}
    )
    camera = settings.camera
    if camera.kind in {"folder", "video"} and camera.uri:
        camera = camera.model_copy(update={"uri": str(absolute(Path(camera.uri)))})
    return settings.model_copy(
        update={"bundle": absolute(settings.bundle), "mqtt": mqtt, "camera": camera}
    )


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
