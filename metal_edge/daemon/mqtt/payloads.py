"""Every payload that leaves the daemon, as models: where docs/mqtt/ comes from, and its judge.

The daemon itself builds plain dictionaries (messages.py, heart.py). A model that is wrong would
refuse the verdict or drop a field in production; so tests hold what the daemon really says against
them. A reader in Python may use them: `DecisionPayload.model_validate_json(payload)`.

Fields are added, never renamed: readers must ignore what they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from metal_edge.bundle import Thresholds
from metal_edge.daemon.deciding.decision import Reason
from metal_edge.daemon.deciding.transitions import State
from metal_edge.domain import Preprocess, TimeSource, Verdict
from metal_edge.settings import (
    CameraSettings,
    DecisionSettings,
    GateSettings,
    RegionSettings,
    RuntimeSettings,
)

Iso = Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="UTC, to 1 us")]
Nanoseconds = Annotated[int, Field(ge=0, description="the same instant, UTC, in ns since 1970")]
Milliseconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Open lists: a reader must not break when a word is added.
ReasonWord = Annotated[str, Field(examples=[str(reason) for reason in Reason])]
StateWord = Annotated[str, Field(examples=[str(state) for state in State])]
Latency = Annotated[dict[str, Milliseconds | None], Field(description="grab, infer, post")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Payload(_Part):
    schema_: Literal[1] = Field(alias="schema", description="version of all payloads")


class _Said(_Payload):
    """Published by a daemon: belongs to one run of it."""

    session_id: str = Field(description="UUID, new at each start")


class RegionPart(_Part):
    """An area at or above the threshold, in pixels of the source image."""

    x: Count
    y: Count
    width: Count
    height: Count
    area: Count
    peak: float | None = Field(description="highest anomaly score inside")


class GatePart(_Part):
    """Where the PLC meets this part again; as the settings say, counted from this trigger."""

    offset_ms: float | None
    encoder_counts: int | None
    t_gate: Iso | None
    t_gate_ns: Nanoseconds | None
    encoder_gate: int | None = Field(description="encoder plus encoder_counts; take it modulo")


class ViewPart(_Part):
    """What one of several cameras saw of the part."""

    camera_id: str | None
    frame_id: str | None
    verdict: Verdict
    reason: ReasonWord
    score: float | None
    threshold: float | None
    regions: list[RegionPart] = Field(max_length=16)
    t_exposure_ns: Nanoseconds | None
    latency_ms: Latency


class ClockPart(_Part):
    """How far the times can be trusted."""

    source: TimeSource | None = Field(description="what stamped the frame, best first")
    offset_us: float | None
    synced: bool | None = Field(description="null: the kernel does not say")


class ModelPart(_Part):
    """What decided."""

    id: str
    version: str
    sha256: Sha256


class DecisionPayload(_Said):
    """A verdict on one part, now or never. Let a part go on nothing but `pass`."""

    event_id: str = Field(description="UUIDv5 of station, session, trigger and `seq`")
    seq: int = Field(ge=1, description="without a gap within a session")
    part_id: str | None = Field(description="as in the trigger; null in free run")
    trigger_id: str
    frame_id: str | None
    camera_id: str
    verdict: Verdict
    reason: ReasonWord
    score: float | None
    threshold: float | None
    regions: list[RegionPart] = Field(max_length=16)
    t_exposure: Iso | None
    t_exposure_ns: Nanoseconds | None
    t_publish: Iso
    t_publish_ns: Nanoseconds
    deadline: Iso
    deadline_ns: Nanoseconds
    encoder: int | None = Field(description="as in the trigger")
    gate: GatePart | None = Field(description="null when the settings do not say")
    views: list[ViewPart] = Field(max_length=16, description="empty with one camera")
    clock: ClockPart
    latency_ms: Latency
    model: ModelPart
    backend: str = Field(examples=["onnxruntime-fp32", "tensorrt-int8"])


class EvidencePart(_Part):
    """Pictures kept on the machine, by the SHA-256 of the file."""

    raw: Sha256 | None
    map: Sha256 | None
    overlay: Sha256 | None


class EvidenceOfPart(EvidencePart):
    """Of the first view that had a frame; of all of them where there are several."""

    views: dict[str, EvidencePart] | None = Field(default=None, description="by camera_id")


class EventPayload(DecisionPayload):
    """The audit copy of a decision; at least once, tell copies apart by `event_id`."""

    decision_sent: bool | None = Field(
        description="false: the broker was away, nobody heard in time; null: the daemon died then"
    )
    evidence: EvidenceOfPart | None = None


class DecisionCounts(_Part):
    """Verdicts of this session."""

    pass_: Count = Field(alias="pass")
    reject: Count
    unknown: Count


class HeartbeatPayload(_Said):
    """A sign of life from the deciding loop. `healthy` false, or silence: reject everything."""

    seq: int = Field(ge=1)
    t_publish: Iso
    t_publish_ns: Nanoseconds
    healthy: bool
    state: StateWord
    problems: list[str]
    last_frame_age_ms: Milliseconds | None
    last_decision_seq: Count
    puback_age_ms: Milliseconds | None = Field(description="age of the last acknowledgement")
    echo_age_ms: Milliseconds | None = Field(
        description="age of the youngest heartbeat that the PLC echoed; null: none, or not asked"
    )
    outbox_depth: Count
    events_dropped: Count
    decisions_dropped: Count
    evidence_left_out: Count
    queue_depth: Count
    frames_dropped: Count
    triggers_lost: Count
    decisions: DecisionCounts
    clock_synced: bool | None


class StatePayload(_Said):
    """Birth, degradation and end of a line; retained. The last will has no time."""

    status: Literal["online", "degraded", "offline"]
    problems: list[str] = Field(
        examples=[["broker"], ["denied: event", "camera"], ["unheard: decision"], ["stopped"]]
    )
    t_publish: Iso | None
    t_publish_ns: Nanoseconds | None


class GoldenPart(_Part):
    """How the bundle proved itself."""

    images: int = Field(ge=1)
    tolerance: float
    worst_difference: float | None


class ModelPayload(_Said):
    """What decides, and the promise that its threshold carries; retained."""

    t_publish: Iso
    recipe: str = Field(description="`default`, or a name in [recipes]")
    id: str
    version: str
    sha256: Sha256 = Field(description="of the whole bundle")
    created: str
    precision: Literal["fp32", "fp16", "int8"]
    backend: Literal["onnxruntime", "tensorrt"]
    preprocess: Preprocess
    thresholds: Thresholds
    golden: GoldenPart


def _visible_camera() -> type[BaseModel]:
    """The camera's settings without what may hold a password."""
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in CameraSettings.model_fields.items()
        if name not in {"uri", "options"}
    }
    return create_model("VisibleCamera", __doc__="Settings of a camera, no secrets.", **fields)


VisibleCamera = _visible_camera()


class ConfigPayload(_Said):
    """The settings in use, as far as anybody may see them; retained."""

    t_publish: Iso
    sha256: Sha256 = Field(description="of all settings, those not shown included")
    camera: VisibleCamera  # type: ignore[valid-type]
    views: list[VisibleCamera]  # type: ignore[valid-type]
    regions: RegionSettings
    gate: GateSettings
    decision: DecisionSettings
    runtime: RuntimeSettings
    recipes: list[str] = Field(description="names that cmd/recipe takes, besides `default`")
    echo_timeout_s: float | None = Field(description="null: the PLC's echo is not waited for")
    heartbeat_hz: float


class AnswerPayload(_Payload):
    """What the sender of a command hears, on its response topic with its correlation data."""

    verb: str
    status: Literal["accepted", "done", "refused", "failed"]
    reason: str | None = Field(description="of a refusal or failure, for people")


class TriggerAnswer(AnswerPayload):
    """`accepted`: a decision follows."""

    trigger_id: str | None = Field(description="null when it could not be read")


class StateAnswer(AnswerPayload):
    """`done`: how the line stands now."""

    state: StateWord | None = None


class SnapshotAnswer(AnswerPayload):
    """`done`: whose pictures were kept; the event of that id names the files."""

    trigger_id: str | None = None
    part_id: str | None = None
    event_id: str | None = None


class RecipeAnswer(AnswerPayload):
    """`done`: the recipe in use, and what decides now."""

    recipe: str | None = None
    model: ModelPart | None = None


class GoldenAnswer(AnswerPayload):
    """`done`: the bundle in use reproduces its golden images."""

    images: int | None = None
    worst_difference: float | None = Field(default=None, description="of a score")
    tolerance: float | None = None


ANSWERS: dict[str, type[AnswerPayload]] = {
    "trigger": TriggerAnswer,
    "recipe": RecipeAnswer,
    "arm": StateAnswer,
    "disarm": StateAnswer,
    "snapshot": SnapshotAnswer,
    "golden-check": GoldenAnswer,
}
SAID: dict[str, type[_Said]] = {
    "decision": DecisionPayload,
    "event": EventPayload,
    "heartbeat": HeartbeatPayload,
    "state": StatePayload,
    "model": ModelPayload,
    "config": ConfigPayload,
}
