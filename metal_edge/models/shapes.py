"""How MeTAL cuts an image into tokens (De Nardin et al. 2022, sec. 3.1)."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Shape(StrEnum):
    """One way of cutting a g x g grid of squares into tokens."""

    SQUARES = "squares"
    ROWS = "rows"
    COLS = "cols"


def coverage(grid: int, shape: Shape) -> NDArray[np.bool_]:
    """bool [tokens, grid * grid]: which squares does each token of this shape contain?

    Squares are counted row by row; there are grid * grid square tokens, or `grid` stripes.
    """
    row, col = np.divmod(np.arange(grid * grid), grid)
    match shape:
        case Shape.SQUARES:
            return np.eye(grid * grid, dtype=bool)
        case Shape.ROWS:
            return np.asarray(np.arange(grid)[:, None] == row)
        case Shape.COLS:
            return np.asarray(np.arange(grid)[:, None] == col)
