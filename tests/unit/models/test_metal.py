"""MeTAL's architecture: what Table 2 and Table 6 fix, and the geometry of Fig. 5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metal_edge.models.attention import MaskedSelfAttention, MaskRule
from metal_edge.models.metal import Branch, Metal, MetalConfig
from metal_edge.models.shapes import Shape


def small(**changes: object) -> MetalConfig:
    values: dict[str, object] = {
        "image_size": 32,
        "patch_size": 8,
        "embedding": 8,
        "heads": 2,
        "square_hidden": 12,
        "stripe_hidden": 12,
        "decoder_hidden": (12,),
    }
    return MetalConfig.model_validate(values | changes)


@pytest.mark.parametrize(("blocks", "parameters"), [(1, 17_790_848), (2, 26_319_744)])
def test_parameter_counts_are_those_of_table_6(blocks: int, parameters: int) -> None:
    model = Metal(MetalConfig(blocks=blocks))
    assert sum(p.numel() for p in model.parameters()) == parameters


@settings(max_examples=25)
@given(grid=st.integers(2, 5), patch=st.integers(6, 9), seed=st.integers(0, 99))
def test_cutting_and_pasting_is_a_round_trip(grid: int, patch: int, seed: int) -> None:
    model = Metal(small(image_size=grid * patch, patch_size=patch))
    image = torch.rand(2, 3, grid * patch, grid * patch, generator=torch.manual_seed(seed))
    assert torch.equal(model.paste(model.cut(image)), image)


def test_a_square_patch_is_that_square_of_the_image() -> None:
    model = Metal(small())
    image = torch.rand(1, 3, 32, 32)
    squares = model.cut(image)
    expected = image[0, :, 8:16, 24:32].reshape(-1)
    assert torch.equal(squares[0, 1, 3], expected)


@pytest.mark.parametrize("shape", [Shape.ROWS, Shape.COLS])
def test_a_stripe_token_holds_exactly_the_pixels_of_its_stripe(shape: Shape) -> None:
    config = small()
    branch = Branch(config, shape)
    image = torch.rand(1, 3, 32, 32)
    tokens = branch.tokens_of(Metal(config).cut(image))
    stripe = image[0, :, 8:16, :] if shape is Shape.ROWS else image[0, :, :, 8:16]
    assert tokens.shape == (1, 4, 3 * 8 * 32)
    assert torch.equal(tokens[0, 1].sort().values, stripe.reshape(-1).sort().values)


@pytest.mark.parametrize("shape", [Shape.ROWS, Shape.COLS])
def test_each_square_gets_its_own_segment_of_its_own_stripe(shape: Shape) -> None:
    """Fig. 5: with blocks taken out, segment s of stripe t lands on the square it covers."""
    branch = Branch(small(), shape)
    branch.blocks = torch.nn.Sequential()
    segments = torch.arange(4 * 4 * 8.0).reshape(1, 4, 32)  # [1, stripes, 4 segments of 8]
    with torch.no_grad():
        for layer in (branch.embed[0], branch.embed[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        branch.position.copy_(segments)
        given_to = branch(torch.zeros(1, 4, 4, 3 * 64))
    for stripe in range(4):
        for segment in range(4):
            row, col = (stripe, segment) if shape is Shape.ROWS else (segment, stripe)
            expected = segments[0, stripe, segment * 8 : (segment + 1) * 8]
            assert torch.equal(given_to[0, row, col], expected)


@pytest.mark.parametrize("rule", [MaskRule.OFF, MaskRule.ZERO, MaskRule.NEG_INF])
def test_masked_attention_agrees_with_its_definition(rule: MaskRule) -> None:
    torch.manual_seed(3)
    tokens, dim, heads = 5, 8, 2
    attention = MaskedSelfAttention(dim, heads, tokens, rule).double()
    x = torch.randn(1, tokens, dim, dtype=torch.float64)
    with torch.no_grad():
        got = attention(x)[0].numpy()
        q, k, v = (
            (x[0] @ attention.query_key_value.weight.T)
            .reshape(tokens, 3, heads, dim // heads)
            .permute(1, 2, 0, 3)
            .numpy()
        )
        weight, bias = attention.project.weight.numpy(), attention.project.bias.numpy()
    mixed = []
    for head in range(heads):
        score = q[head] @ k[head].T / np.sqrt(dim // heads)
        diagonal = np.eye(tokens, dtype=bool)
        if rule is MaskRule.ZERO:
            score[diagonal] = 0
        weights = np.exp(score - score.max(axis=1, keepdims=True))
        if rule is MaskRule.NEG_INF:
            weights[diagonal] = 0
        mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v[head])
    expected = np.concatenate(mixed, axis=1) @ weight.T + bias
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 30},
        {"image_size": 8},
        {"shapes": ()},
        {"shapes": ("rows", "rows")},
        {"widht": 3},
        {"blocks": 0},
        {"blocks": 9},
        {"mask": "zero", "radius": 1},
        {"mask": "zeroleak", "heads": 3},
        {"mask": "zeroleak", "image_size": 16, "patch_size": 16},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        small(**change)


# Table 3: squares alone without a mask and with one, then each union.
COLUMNS = [
    ("squares",),
    ("squares", "rows"),
    ("squares", "cols"),
    ("rows", "cols"),
    ("squares", "rows", "cols"),
]


@pytest.mark.parametrize("shapes", COLUMNS, ids="+".join)
@pytest.mark.parametrize("mask", list(MaskRule))
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_column_of_table_3_trains(
    shapes: tuple[str, ...], mask: MaskRule, blocks: int
) -> None:
    """A step along the gradient lowers the loss, and every weight has a part in it."""
    torch.manual_seed(0)
    model = Metal(small(shapes=shapes, mask=mask, blocks=blocks))
    image = torch.rand(4, 3, 32, 32)
    before = model.loss(model(image), image)
    before.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(1e-2 * p.grad)
        assert model.loss(model(image), image) < before


def test_the_original_masks_have_one_branch_per_shape_and_zeroleak_has_none() -> None:
    assert len(Metal(small(shapes=("squares", "cols"))).branches) == 2
    zeroleak = Metal(small(shapes=("squares", "cols"), mask="zeroleak"))
    assert len(zeroleak.branches) == 0
    assert zeroleak.encoder is not None


def test_self_attention_cannot_claim_zeroleak() -> None:
    with pytest.raises(ValueError, match="leaking"):
        MaskedSelfAttention(8, 2, 4, MaskRule.ZEROLEAK)
