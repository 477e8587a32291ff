"""How a run trains; stored in the run so that it can be repeated and resumed."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Precision(StrEnum):
    """Arithmetic of the forward pass; weights and optimiser stay in float32.

    AUTO: bf16 where the hardware multiplies it natively, fp16 on other GPUs, else fp32.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Schedule(StrEnum):
    """Learning rate over the run: the paper's constant one, or warm-up and cosine to zero."""

    CONSTANT = "constant"
    COSINE = "cosine"


class TrainConfig(BaseModel):
    """Optimisation of one run.

    The run ends after `epochs`, or when validation has not improved for `patience` epochs once
    `min_epochs` are done, or when `max_minutes` of training are used up, whichever is first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    epochs: int = Field(default=3000, ge=1)
    min_epochs: int = Field(default=500, ge=0)
    patience: int = Field(default=50, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Schedule = Schedule.CONSTANT
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of a cosine run")
    precision: Precision = Precision.AUTO
    save_every_s: float = Field(default=30.0, ge=0, description="most work a kill -9 can cost")
