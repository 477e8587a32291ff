"""Which class belongs to which configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from metal_edge.models.base import AnomalyModel
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.metal import Metal, MetalConfig

NetworkConfig = Annotated[MetalConfig | MetalFeaturesConfig, Field(discriminator="kind")]
network_config: TypeAdapter[MetalConfig | MetalFeaturesConfig] = TypeAdapter(NetworkConfig)


def build_model(config: NetworkConfig) -> AnomalyModel:
    """A freshly initialised network for `config`; a backbone has random weights still."""
    match config:
        case MetalConfig():
            return Metal(config)
        case MetalFeaturesConfig():
            return MetalFeatures(config)
