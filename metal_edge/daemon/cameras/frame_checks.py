"""What a picture must show before a model is asked about it. Pure; one object per camera.

A model trained on good parts has never seen a covered lens, and what it says of one means
nothing. These checks know nothing of parts: they find pictures that no part can have made.
"""

from __future__ import annotations

import zlib
from collections import deque

import numpy as np

from metal_edge.daemon.deciding.decision import Reason
from metal_edge.domain import Image
from metal_edge.settings import FrameCheckSettings

# A dark picture may hold hot pixels; a real part covers more than this share of it.
BLACK_SHARE = 0.001
# Levels are counted on an even grid of about so many pixels: a larger one would say no more.
GRID_PIXELS = 65_536
FROZEN_IF_LIVE = 2
# A driver that is stuck may hand out all its buffers in turn; few keep more.
RING = 16


class FrameChecks:
    """Looks at every frame of one camera, in order.

    Args:
        settings: limits.
        live: the camera has a sensor, whose noise makes no two pictures alike.
    """

    def __init__(self, settings: FrameCheckSettings, live: bool) -> None:
        self._black_level = settings.black_level
        self._saturated_share = settings.saturated_share
        frozen_after = settings.frozen_after
        if frozen_after is None:
            frozen_after = FROZEN_IF_LIVE if live else 0
        self._frozen_after = frozen_after
        self._last: deque[tuple[tuple[int, ...], int]] = deque(maxlen=RING)  # newest first
        self._alike = [0] * RING  # by lag, how many in a row were like the one so long before

    def fault(self, image: Image) -> Reason | None:
        """What is wrong with the picture itself; call it once per frame, in order.

        Args:
            image: uint8 [H, W, 3].

        Returns:
            frozen_frame: the last so many pictures, this one included, are the same, or the same
                few come round again.
            black_frame: no more than `BLACK_SHARE` of the pixels have a channel above the level.
            saturated_frame: more than the given share of the pixels have a channel at 255, so
                that what is brighter there cannot be seen.
            None: nothing of these.
        """
        if self._is_frozen(image):
            return Reason.FROZEN_FRAME
        brightest = _brightest(image)
        if self._black_level and _share(brightest > self._black_level) <= BLACK_SHARE:
            return Reason.BLACK_FRAME
        if _share(brightest == 255) > self._saturated_share:
            return Reason.SATURATED_FRAME
        return None

    def _is_frozen(self, image: Image) -> bool:
        if not self._frozen_after:
            return False
        # 32 bits are enough: equal pictures are always found, and two different ones that are
        # taken for equal, once in 300 million frames, cost one `unknown`. A better digest would
        # cost each frame of 5 megapixels 10 ms.
        digest = (image.shape, zlib.crc32(np.ascontiguousarray(image).data))
        for place, earlier in enumerate(self._last):
            self._alike[place] = self._alike[place] + 1 if earlier == digest else 0
        self._last.appendleft(digest)
        return max(self._alike) >= self._frozen_after - 1


def _brightest(image: Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [h, w]: the brightest channel, on the grid."""
    step = max(1, int((image.shape[0] * image.shape[1] / GRID_PIXELS) ** 0.5))
    grid = image[::step, ::step]
    return np.maximum(np.maximum(grid[..., 0], grid[..., 1]), grid[..., 2])


def _share(pixels: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    """Counted: a mean would make a 64-bit number of each first."""
    return np.count_nonzero(pixels) / pixels.size
