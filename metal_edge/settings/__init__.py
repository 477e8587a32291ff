"""One line's settings: TOML plus environment, frozen, unknown keys forbidden.

Environment variables override the file: `METAL_EDGE_MQTT__HOST=broker.local` sets `[mqtt] host`.
"""

from metal_edge.settings.base import (
    Level,
)
from metal_edge.settings.camera import (
    CameraMode,
    CameraSettings,
    FrameCheckSettings,
    PixelFormat,
    Polygon,
    RegionSettings,
    ViewSettings,
)
from metal_edge.settings.line import (
    LineSettings,
    RecipeSettings,
    ViewRecipe,
)
from metal_edge.settings.loading import (
    load_settings,
)
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

__all__ = [
    "CameraMode",
    "CameraSettings",
    "DecisionSettings",
    "EvidenceSettings",
    "FrameCheckSettings",
    "GateSettings",
    "Level",
    "LineSettings",
    "LogSettings",
    "MetricsSettings",
    "MqttSettings",
    "OutboxSettings",
    "PixelFormat",
    "Polygon",
    "RecipeSettings",
    "RegionSettings",
    "RuntimeSettings",
    "SparkplugSettings",
    "StationSettings",
    "ViewRecipe",
    "ViewSettings",
    "load_settings",
]
