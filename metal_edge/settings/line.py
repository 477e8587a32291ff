"""All settings of one line, and what they must not contradict."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from metal_edge.settings.base import Level, Section
from metal_edge.settings.camera import CameraMode, CameraSettings, RegionSettings, ViewSettings
from metal_edge.settings.station import (
    DecisionSettings,
    EvidenceSettings,
    GateSettings,
    LogSettings,
    MetricsSettings,
    MqttSettings,
    OutboxSettings,
    RuntimeSettings,
    SparkplugSettings,
    StationSettings,
)


class ViewRecipe(Section):
    """What one more view runs under a recipe."""

    bundle: Path
    regions: RegionSettings = RegionSettings()


class RecipeSettings(Section):
    """What changes when the line makes another product; chosen by `cmd/recipe`."""

    bundle: Path = Field(description="for the first camera")
    regions: RegionSettings = RegionSettings()
    views: dict[Level, ViewRecipe] = Field(
        default_factory=dict, description="by camera_id; a view not named keeps its own"
    )


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
    regions: RegionSettings = RegionSettings()
    views: tuple[ViewSettings, ...] = Field(
        default=(), max_length=15, description="more cameras that look at the same part"
    )
    recipes: dict[Level, RecipeSettings] = Field(
        default_factory=dict, description="by name; `default` is bundle, regions and views above"
    )
    gate: GateSettings = GateSettings()
    mqtt: MqttSettings = MqttSettings()
    decision: DecisionSettings = DecisionSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    outbox: OutboxSettings = OutboxSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    sparkplug: SparkplugSettings = SparkplugSettings()
    heartbeat_hz: float = Field(default=5.0, ge=1, le=50, description="heartbeats per second")

    @model_validator(mode="after")
    def _consistent(self) -> LineSettings:
        ids = [self.camera.camera_id, *(view.camera_id for view in self.views)]
        if len(set(ids)) != len(ids):
            raise ValueError("each view needs a camera_id of its own")
        if "default" in self.recipes:
            raise ValueError("the recipe `default` is the file's own bundle; name it otherwise")
        modes = {self.camera.mode, *(view.mode for view in self.views)}
        if self.views and modes != {CameraMode.TRIGGERED}:
            raise ValueError("several views need mode = triggered: they must see the same part")
        for name, recipe in self.recipes.items():
            strange = sorted(recipe.views.keys() - set(ids[1:]))
            if strange:
                raise ValueError(f"recipe {name}: no view has camera_id {strange[0]}")
        return self

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
