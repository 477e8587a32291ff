"""The memory of good tokens: the exact distance to the nearest, however it was found."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metal_edge.models.memory import TokenMemory

SIZES = (1, 5, 13, 30, 64)  # one, primes, and rectangles of groups
LEAST = math.sqrt(1e-3)


def remembering(tokens: Tensor, size: int | None = None) -> TokenMemory:
    """A memory with room for all the tokens."""
    memory = TokenMemory(size or len(tokens), tokens.shape[1])
    memory.fit(tokens, torch.Generator().manual_seed(0))
    return memory


def nearest(queries: Tensor, tokens: Tensor) -> Tensor:
    """Distances by definition, in double precision."""
    return torch.cdist(queries.double(), tokens.double()).amin(dim=-1)


@given(st.integers(0, 2**31), st.sampled_from(SIZES), st.floats(0.1, 30), st.floats(-10, 10))
def test_it_gives_the_distance_to_the_nearest_token(
    seed: int, size: int, spread: float, centre: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = centre + spread * torch.randn(size, 12, generator=generator)
    queries = centre + spread * torch.randn(2, 7, 12, generator=generator)
    wanted = (nearest(queries, tokens).square() + LEAST**2).sqrt()
    assert torch.allclose(remembering(tokens)(queries).double(), wanted, rtol=1e-4)


@given(st.integers(0, 2**31), st.sampled_from(SIZES))
def test_a_remembered_token_is_as_near_as_can_be(seed: int, size: int) -> None:
    """No rounding of large numbers is left, as there is where distances come from products."""
    tokens = 100 + torch.randn(size, 12, generator=torch.Generator().manual_seed(seed))
    assert remembering(tokens)(tokens[None]).max() < 1.001 * LEAST


@given(st.integers(0, 2**31), st.sampled_from(SIZES), st.floats(0, 100))
def test_a_search_that_errs_never_brings_a_token_nearer(seed: int, size: int, error: float) -> None:
    """What INT8 does to the products of the search."""
    generator = torch.Generator().manual_seed(seed)
    memory = remembering(torch.randn(size, 12, generator=generator))
    queries = torch.randn(1, 9, 12, generator=generator)
    exact = memory(queries)
    wrong = torch.randn(memory.bank.shape, generator=generator)

    class Erring(TokenMemory):
        def _nearest(self, x: Tensor) -> Tensor:
            kept = self.bank.clone()
            self.bank.add_(error * wrong)
            found = super()._nearest(x)
            self.bank.copy_(kept)
            return found

    erring = Erring(size, 12)
    erring.load_state_dict(memory.state_dict())
    assert (erring(queries) >= exact * (1 - 1e-5)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_passes_on(value: float) -> None:
    tokens = torch.randn(6, 4)
    memory = remembering(tokens)
    tokens[2, 1] = value
    assert memory(tokens[None]).isfinite()[0].tolist() == [index != 2 for index in range(6)]


@pytest.mark.parametrize("size", [13, 30])
def test_fewer_tokens_than_memory_change_no_distance(size: int) -> None:
    torch.manual_seed(1)
    tokens, queries = torch.randn(5, 4), torch.randn(1, 9, 4)
    few, many = remembering(tokens), remembering(tokens, size)
    assert torch.allclose(few(queries), many(queries), atol=1e-5)
