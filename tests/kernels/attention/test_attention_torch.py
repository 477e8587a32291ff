"""A second implementation that others wrote: PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

import numpy as np
import pytest
from support.attention_cases import make_case

from metal_edge.export.masked_attention import reference
from tools.kernels.attention import HostLibrary, run_host

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize("keys", [64, 200])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_error_is_at_most_twice_that_of_pytorch(
    library: HostLibrary, head_dim: int, keys: int, biased: bool, kind: type
) -> None:
    """The bias goes to PyTorch as an additive mask, in its tensors' type."""
    bias = {"slopes": (0.5, 0.25), "columns": 8} if biased else {}
    case = make_case(kind, batch=2, heads=2, queries=keys, keys=keys, head_dim=head_dim, **bias)
    np.fill_diagonal(allowed := case.spec.allowed[0].copy(), True)
    case = make_case(
        kind, batch=2, heads=2, queries=keys, keys=keys, head_dim=head_dim, allowed=allowed, **bias
    )
    mask = torch.from_numpy(case.spec.allowed)[None]
    if case.spec.bias is not None:
        added = torch.from_numpy(case.spec.bias)[None].expand(2, 2, keys, keys)
        mask = added.masked_fill(~mask, -torch.inf).to(torch.from_numpy(case.tensors[0]).dtype)
    heads = [
        torch.from_numpy(each).reshape(2, keys, 2, head_dim).transpose(1, 2)
        for each in case.tensors
    ]
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
    expected = reference(case.tensors, case.spec)
    pytorch = theirs.transpose(1, 2).reshape(expected.shape).numpy()
    ours = run_host(library, case.tensors, case.spec)
    error = np.abs(ours - expected).max()
    assert error <= 2 * np.abs(pytorch - expected).max()
