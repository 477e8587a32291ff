"""What may follow which model on a line: not an older one, not one for another camera. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from metal_edge.bundle import Bundle, Manifest
from metal_edge.daemon.line.model import Model
from metal_edge.errors import BundleError


def is_older(one: Manifest, other: Manifest) -> bool:
    """True when `one` comes before `other`, a bundle of the same name.

    Versions are compared number by number (1.9 < 1.10); where that says nothing, because they
    are equal or words, the time of creation decides.
    """
    left, right = _numbers(one.version), _numbers(other.version)
    if left is not None and right is not None and left != right:
        return left < right
    return one.created_utc < other.created_utc


def _numbers(version: str) -> tuple[int, ...] | None:
    """(1, 10) of "v1.10"; trailing zeros do not count; None where there is more than numbers."""
    match = re.fullmatch(r"v?(\d{1,18}(?:[.-]\d{1,18})*)", version)
    if match is None:
        return None
    numbers = [int(part) for part in re.split(r"[.-]", match[1])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def check_version(bundle: Bundle, newest: Mapping[str, Manifest]) -> None:
    """Refuses to go back unseen.

    Args:
        newest: by name, the newest bundle that has served.

    Raises:
        BundleError: an older one than that.
    """
    served = newest.get(bundle.manifest.name)
    if served is not None and is_older(bundle.manifest, served):
        raise BundleError(
            f"{bundle.path} is version {bundle.manifest.version} of {served.name}, older than"
            f" {served.version}, which has served",
            'say "allow_downgrade": true, or restart the line, if that is meant',
        )


def check_size(model: Model, now: Model) -> None:
    """Refuses a model for pictures of another size than those that `now` takes.

    Raises:
        BundleError: names both sizes.
    """
    size, used = model.rules.source_size, now.rules.source_size
    if size is not None and used is not None and size != used:
        raise BundleError(
            f"{model.bundle.path} is for pictures of {size[0]} x {size[1]}, and this camera's"
            f" are {used[0]} x {used[1]}",
            "use a bundle that was trained with this camera",
        )
