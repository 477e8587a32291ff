"""Pictures for the small graph of `support.small_graph`."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from support.small_graph import SIDE


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    """uint8 [16, 8, 8, 3], brightness rising from 0 to about 240, each with a little texture."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 12, (16, SIDE, SIDE, 3))
    return (texture + np.arange(16)[:, None, None, None] * 15).astype(np.uint8)
