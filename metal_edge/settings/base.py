"""What all sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# ISA-95 levels become MQTT topic levels, so the characters with a meaning there are refused.
Level = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class Section(BaseModel):
    """A part of the settings: frozen, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)
