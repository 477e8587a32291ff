"""Settings that a kind of camera does not know are refused, not ignored."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from metal_edge.errors import SettingsError
from metal_edge.settings import CameraMode, CameraSettings


class Options(BaseModel):
    """Base of what `[camera.options]` may hold for one kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(settings: CameraSettings, model: type[OptionsT]) -> OptionsT:
    """`camera.options`, checked.

    Raises:
        SettingsError: an unknown key, or a value out of range; names the key.
    """
    try:
        return model.model_validate(settings.options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(("camera.options", *(str(part) for part in first["loc"])))
        known = ", ".join(sorted(model.model_fields)) or "none"
        raise SettingsError(
            f"{key}: {first['msg']}", f"options of kind {settings.kind}: {known}"
        ) from error


def refuse_options(settings: CameraSettings) -> None:
    """For a kind without options.

    Raises:
        SettingsError: there are some.
    """
    parse_options(settings, Options)


def refuse_settings(settings: CameraSettings, remedy: str, *, wired: bool = False) -> None:
    """For a kind whose sensor cannot be told anything.

    Args:
        remedy: what to do instead.
        wired: the kind has a trigger input.

    Raises:
        SettingsError: exposure, gain, pixel format or a wired trigger is asked for.
    """
    asked = {
        "exposure_us": settings.exposure_us is not None,
        "gain_db": settings.gain_db is not None,
        "pixel_format": settings.pixel_format != "auto",
        "trigger_source": settings.trigger_source != "software" and not wired,
        "mode": settings.mode is CameraMode.HARDWARE and not wired,
    }
    for key, given in asked.items():
        if given:
            raise SettingsError(
                f"camera.{key} cannot be used with kind {settings.kind}",
                f"leave it out; {remedy}",
            )
