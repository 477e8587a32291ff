"""Settings of the station around the camera: gate, broker, back end, records."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from metal_edge.settings.base import Level, Section


class StationSettings(Section):
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


class GateSettings(Section):
    """Where the reject gate stands behind the camera; copied into each decision for the PLC."""

    offset_ms: float | None = Field(
        default=None, gt=0, le=600_000, description="travel time from trigger to gate"
    )
    encoder_counts: int | None = Field(
        default=None, gt=0, le=2**31, description="encoder counts from trigger to gate"
    )
    margin_ms: float = Field(
        default=10.0, ge=0, le=10_000, description="the verdict must be out this long before"
    )

    @model_validator(mode="after")
    def _leaves_time(self) -> GateSettings:
        if self.offset_ms is not None and self.margin_ms >= self.offset_ms:
            raise ValueError("margin_ms must be below offset_ms: no part could ever pass")
        return self


class MqttSettings(Section):
    """The broker. TLS is on as soon as `ca_file` is set."""

    host: str = Field(default="127.0.0.1", description="name or address of the broker")
    port: int = Field(default=1883, ge=1, le=65535, description="usually 8883 with TLS")
    username: str | None = Field(default=None, description="needs password_file")
    username_file: Path | None = Field(
        default=None,
        description="instead of username: a file with it, or the name of a systemd credential",
    )
    password_file: Path | None = Field(
        default=None,
        description="file with the password, or the name of a systemd credential; never itself",
    )
    ca_file: Path | None = Field(
        default=None, description="CA certificates, or the name of a credential; turns TLS on"
    )
    cert_file: Path | None = Field(
        default=None, description="own certificate, for mTLS, or the name of a credential"
    )
    key_file: Path | None = Field(
        default=None, description="its private key without passphrase, or the name of a credential"
    )
    keepalive_s: int = Field(
        default=5, ge=1, le=120, description="MQTT keepalive: how soon a dead peer is noticed"
    )
    connect_timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="at start; later it reconnects for ever"
    )
    event_queue: int = Field(
        default=1000, ge=1, le=100_000, description="audit events kept in memory on their way"
    )
    echo_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=60,
        description="degraded when the PLC has not echoed a heartbeat for so long; empty: no echo",
    )

    @model_validator(mode="after")
    def _pairs(self) -> MqttSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.username is not None and self.username_file is not None:
            raise ValueError("username and username_file exclude each other")
        named = self.username is not None or self.username_file is not None
        if named and self.password_file is None:
            raise ValueError("username needs password_file")
        return self


class DecisionSettings(Section):
    """How a score becomes a verdict. The threshold itself lives in the bundle."""

    deadline_ms: float = Field(
        default=500.0, gt=0, le=60_000, description="trigger to verdict; later is `unknown`"
    )
    max_frame_age_ms: float = Field(
        default=1000.0, gt=0, le=60_000, description="an older frame is stale and gives `unknown`"
    )
    max_exposure_delay_ms: float | None = Field(
        default=None,
        gt=0,
        le=60_000,
        description="command to exposure; later shows another part: `unknown`. Empty: no limit",
    )
    trigger_queue: int = Field(default=8, ge=1, le=1024, description="overflow is `unknown`")


class RuntimeSettings(Section):
    """The inference back end."""

    threads: int = Field(default=1, ge=1, le=64, description="ONNX Runtime intra-op threads")
    cpus: tuple[int, ...] = Field(
        default=(), max_length=256, description="pin the daemon to these CPUs; empty: any"
    )
    realtime_priority: int = Field(
        default=0, ge=0, le=50, description="SCHED_FIFO of the deciding threads; 0: none"
    )


class OutboxSettings(Section):
    """Audit events on disk until the broker has them."""

    path: Path | None = Field(
        default=None,
        description="SQLite file; empty: in systemd's state directory, or memory only",
    )
    max_age_h: float = Field(default=168.0, gt=0, le=8760, description="older events are dropped")
    max_mb: float = Field(default=256.0, gt=0, le=1e6, description="the oldest give way")


class EvidenceSettings(Section):
    """Pictures kept for people: raw, anomaly map, overlay."""

    keep: Literal["none", "reject", "all"] = Field(
        default="none", description="of which parts; reject: of every part that did not pass"
    )
    path: Path | None = Field(
        default=None, description="folder; empty: evidence in systemd's state directory"
    )
    max_age_h: float = Field(default=720.0, gt=0, le=87_600, description="older ones are deleted")
    max_mb: float = Field(default=2048.0, gt=0, le=1e7, description="the oldest give way")


class MetricsSettings(Section):
    """Prometheus, over HTTP."""

    port: int | None = Field(default=None, ge=0, le=65535, description="empty: no server")
    host: str = Field(default="127.0.0.1", description="address to listen on")


class LogSettings(Section):
    """What is written to stderr, and so to the journal."""

    format: Literal["text", "json"] = Field(default="text", description="json: a line per record")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO")


class SparkplugSettings(Section):
    """An optional copy of states and verdicts for Sparkplug B hosts; never the reject path."""

    group_id: Level | None = Field(default=None, description="empty: no Sparkplug")
    edge_node_id: Level | None = Field(default=None, description="empty: line-station")
