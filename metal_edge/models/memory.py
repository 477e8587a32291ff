"""Memory of good tokens, as in PatchCore (Roth et al., "Towards Total Recall in Industrial
Anomaly Detection", CVPR 2022): a token is judged by its distance to the nearest remembered one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CANDIDATES = 50_000  # more tokens than this are thinned at random before the greedy choice
_DIMENSIONS = 64
_SOFT = 1e-3  # added to squared distances: the root would magnify the rounding of small ones


def greedy_coreset(
    points: Tensor,
    count: int,
    dimensions: int,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tensor:
    """Greedy k-centre choice: again and again the point farthest from all chosen ones.

    Distances are those of a random projection (Johnson and Lindenstrauss), as in the paper.

    Args:
        points: float32 [M, C].
        count: how many to choose, 1..M.
        dimensions: of the projection; C or more leaves the points as they are.
        generator: projection and first point.
        on_step: called with (chosen, count) after each choice.

    Returns:
        int64 [count], distinct indices into `points`, in the order of choice.

    Raises:
        ValueError: count is not in 1..M.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"cannot choose {count} of {len(points)} points")
    if dimensions < points.shape[1]:
        directions = torch.randn(points.shape[1], dimensions, generator=generator)
        points = points @ (directions / dimensions**0.5)
    squares = points.square().sum(dim=1)
    nearest = torch.full((len(points),), float("inf"))
    index = int(torch.randint(len(points), (1,), generator=generator))
    chosen = torch.empty(count, dtype=torch.int64)
    for step in range(count):
        chosen[step] = index
        distance = squares + squares[index] - 2.0 * (points @ points[index])
        torch.minimum(nearest, distance, out=nearest)
        nearest[index] = -float("inf")  # rounding, or an exact copy, must not choose it again
        index = int(nearest.argmax())
        on_step(step + 1, count)
    return chosen


def _group(size: int) -> int:
    """The divisor of `size` next below its root: that many rows to a group."""
    return next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)


class TokenMemory(nn.Module):
    """A fixed number of remembered tokens.

    Args:
        size: how many; fewer tokens to choose from fill the rest with copies, which change no
            distance.
        channels: C of a token.
    """

    bank: Tensor
    centre: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(size, channels))
        self.register_buffer("centre", torch.zeros(channels))

    def fit(self, tokens: Tensor, generator: torch.Generator) -> None:
        """Chooses what to remember.

        Args:
            tokens: float32 [M, C], all tokens of the good images.
            generator: of the thinning, the projection and the first choice.
        """
        size = len(self.bank)
        if len(tokens) > max(_CANDIDATES, size):
            order = torch.randperm(len(tokens), generator=generator)
            tokens = tokens[order[: max(_CANDIDATES, size)]]
        chosen = greedy_coreset(tokens, min(size, len(tokens)), _DIMENSIONS, generator)
        kept = tokens[chosen]
        self.centre.copy_(kept.mean(dim=0))
        self.bank.copy_(kept[torch.arange(size) % len(kept)] - self.centre)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [B, N]: Euclidean distance to the nearest remembered token, at least .03."""
        x = (tokens - self.centre).flatten(0, 1)
        # The products only choose a token; the distance to it is computed from the differences.
        # So whatever rounds the products (INT8, FP16) can choose a token that is farther, which
        # makes a part look less usual, never more so. And NaN stays NaN, whatever is chosen.
        difference = x - self.bank.index_select(0, self._nearest(x))
        return (difference.square().sum(dim=-1) + _SOFT).sqrt().reshape(tokens.shape[:2])

    def _nearest(self, x: Tensor) -> Tensor:
        """[M, C] -> int64 [M], row of the bank.

        The largest x.b - |b|^2 / 2, in two steps: the maximum of each group of rows, then a
        search within the best group. Searching a row of thousands for the place of its maximum
        takes most run-times several times as long as finding the maximum alone.
        """
        scores = F.linear(x, self.bank, -0.5 * self.bank.square().sum(dim=1))
        group = _group(len(self.bank))
        scores = scores.reshape(-1, len(self.bank) // group, group)
        best = scores.amax(dim=2).argmax(dim=1, keepdim=True)  # [M, 1]
        members = best.unsqueeze(2).expand(-1, 1, group)
        within = scores.gather(1, members).squeeze(1).argmax(dim=1)
        return best.squeeze(1) * group + within
