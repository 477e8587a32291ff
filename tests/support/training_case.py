"""The smallest training there is: a network of a few hundred weights on 32 x 32 noise."""

from __future__ import annotations

from metal_edge.models.metal import MetalConfig
from metal_edge.training.config import Precision, Schedule, TrainConfig

NETWORK = MetalConfig(
    image_size=32,
    patch_size=8,
    embedding=8,
    heads=2,
    square_hidden=16,
    stripe_hidden=16,
    decoder_hidden=(16,),
)


def config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "epochs": 4,
        "min_epochs": 0,
        "patience": 100,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "schedule": Schedule.COSINE,
        "precision": Precision.FP32,
        "save_every_s": 1e9,
    }
    return TrainConfig.model_validate(values | changes)
