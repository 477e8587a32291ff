"""The one interface to a model that runs: uint8 frames in, anomaly maps and scores out."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Inspection


class Runner(Protocol):
    """A loaded model. A context manager: leaving it frees the session."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, 3 of one input image."""

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """Infers a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, 0..255, C-contiguous.

        Returns:
            One Inspection per image, the caller's for good: no later call changes it. Its numbers
            may be non-finite, which the caller must treat as `unknown`.

        Raises:
            ValueError: wrong shape or dtype.
            UnavailableError: the back end failed.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_images(images: NDArray[np.uint8], shape: tuple[int, int, int]) -> None:
    """Refuses anything but uint8 [N, H, W, 3] of the model's size."""
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(f"images must be [N, {shape[0]}, {shape[1]}, 3], got {images.shape}")
