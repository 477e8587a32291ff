"""Which class belongs to which configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from metal_edge.models.anovit import AnoViT, AnoViTConfig
from metal_edge.models.base import AnomalyModel
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.l2bt import L2BT, L2BTConfig
from metal_edge.models.metal import Metal, MetalConfig

NetworkConfig = Annotated[
    MetalConfig | MetalFeaturesConfig | L2BTConfig | AnoViTConfig, Field(discriminator="kind")
]
network_config: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)


def build_model(config: NetworkConfig) -> AnomalyModel:
    """A freshly initialised network for `config`; a backbone has random weights still.

    Raises:
        UnavailableError: its backbone needs a package that is not installed.
        SettingsError: its backbone cannot be what the configuration wants.
    """
    match config:
        case MetalConfig():
            return Metal(config)
        case MetalFeaturesConfig():
            return MetalFeatures(config)
        case L2BTConfig():
            return L2BT(config)
        case AnoViTConfig():
            return AnoViT(config)


def check_pretrained(config: NetworkConfig) -> None:
    """Loads a backbone's published weights once, so that their absence shows before long work.

    Raises:
        UnavailableError, MissingInputError, DataError: see `AnomalyModel.load_pretrained`.
    """
    build_model(config).load_pretrained()
