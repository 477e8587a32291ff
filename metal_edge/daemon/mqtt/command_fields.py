"""What each command may carry. Everything else is refused before a handler sees it.

These models check what comes in, and are where the JSON Schemas under docs/mqtt/ come from.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_DEADLINE_MS = 60_000.0

# No slash, space or wildcard: an id may become a file name or a level of a topic.
Identifier = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="1 to 64 of A-Z a-z 0-9 _ . : -"),
]


class Fields(BaseModel):
    """Strict: no conversion, no NaN, no field that we do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TriggerFields(Fields):
    """A part stands before the camera: one verdict, please."""

    trigger_id: Identifier = Field(description="counts once per session")
    part_id: Identifier = Field(description="the PLC's name for the part; repeated in the decision")
    deadline_ms: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DEADLINE_MS,
        description="from arrival to verdict; null: decision.deadline_ms of the settings",
    )
    encoder: int | None = Field(
        default=None,
        ge=-(2**31),
        le=2**32 - 1,
        description="encoder count at the photo-eye; the decision says the count at the gate",
    )


class RecipeFields(Fields):
    """Make another product from now on."""

    recipe: str = Field(
        pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="a name in [recipes], or `default`"
    )
    allow_downgrade: bool = Field(
        default=False, description="true: also to an older version of a bundle that has served"
    )


class ArmFields(Fields):
    """Inspect again after `disarm`."""


class DisarmFields(Fields):
    """Answer every trigger `unknown` until `arm`."""

    reason: str | None = Field(
        default=None, max_length=200, description="for the log and the state; free text"
    )


class SnapshotFields(Fields):
    """Keep the next frame and what the model says of it, whatever evidence.keep says."""


class GoldenCheckFields(Fields):
    """Run the golden images of the bundle in use again, beside production."""


FIELDS: dict[str, type[Fields]] = {
    "trigger": TriggerFields,
    "recipe": RecipeFields,
    "arm": ArmFields,
    "disarm": DisarmFields,
    "snapshot": SnapshotFields,
    "golden-check": GoldenCheckFields,
}
