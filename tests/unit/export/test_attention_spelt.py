"""MaskedAttention in ONNX's own operators says what its definition in NumPy says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnx import helper
from support.attention_cases import Case, assert_close, cases, make_case

from metal_edge.export.attention_spelt import spell_out
from metal_edge.export.masked_attention import (
    Fill,
    Int8Scales,
    MaskedAttentionSpec,
    plain,
    reference,
)
from metal_edge.export.operator_node import DOMAIN


def model_of(case: Case) -> onnx.ModelProto:
    """One node over the case's tensors."""
    names = [f"x{index}" for index in range(len(case.tensors))]
    element = helper.np_dtype_to_tensor_dtype(case.tensors[0].dtype)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [case.spec.node(names, "y", "attention")],
        "one",
        [value(n, element, t.shape) for n, t in zip(names, case.tensors, strict=True)],
        [value("y", element, [None, None, None])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def spelt(case: Case) -> Any:
    model = spell_out(model_of(case))
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, case.tensors, strict=True)))[0]


def check(case: Case) -> None:
    """As a kernel is judged: at most twice as far off as the plain program.

    float32, whose tolerance is its last bits: as exact as ONNX Runtime's exponential.
    """
    got = spelt(case)
    assert got.dtype == case.tensors[0].dtype
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, plain(case.tensors, case.spec), rtol=1e-4, atol=1e-4)
    else:
        assert_close(got, case)


@settings(max_examples=40, deadline=None)
@given(cases(largest=100))
def test_it_says_what_plain_says(case: Case) -> None:
    check(case)


def test_rows_without_keys_are_zeros_and_slopes_and_scales_count() -> None:
    allowed = np.ones((16, 16), bool)
    allowed[3] = False
    for others in ({}, {"scale": 0.5}, {"slopes": (0.2, 0.0), "columns": 4}):
        case = make_case(np.int8, heads=2, allowed=allowed, spread=2.0, **others)
        check(case)
        assert not spelt(case)[:, 3].any()
        zero = make_case(np.int8, heads=2, allowed=allowed, fill=Fill.ZERO, **others)
        check(zero)
        assert spelt(zero)[:, 3].any()


def test_other_nodes_of_ours_keep_their_domain() -> None:
    model = model_of(make_case(np.float16))
    model.graph.node[0].op_type = "MaskedAttentionBlock"
    assert spell_out(model) == model


@pytest.mark.parametrize("inputs", [1, 2])
def test_packed_inputs_are_taken_apart(inputs: int) -> None:
    case = make_case(np.int8, batch=2, heads=2, inputs=inputs, shared_query=inputs == 2)
    check(case)


@pytest.mark.parametrize(
    ("kind", "wanted"), [(np.int8, 10), (np.float16, 1 - 2**-11), (np.float32, 1.0)]
)
def test_weights_are_rounded_to_float16_unless_tensors_are_float32(kind: Any, wanted: Any) -> None:
    """Eleven keys alike: float16's 1/11 makes .9997 in all, on the other side of a rounding."""
    keys, value = 11, 127 if kind == np.int8 else 1
    scales = {"int8": Int8Scales(1, 1, v=10.501 / 127, out=1)} if kind == np.int8 else {}
    spec = MaskedAttentionSpec.of_mask(np.ones((4, keys), bool), 1, **scales)
    tensors = [np.full((1, n, 16), v, kind) for n, v in ((4, 0), (keys, 0), (keys, value))]
    case = Case(tensors, spec)
    last_bits = 1e-6 if kind == np.float32 else 0
    assert reference(tensors, spec) == pytest.approx(10.501 if kind == np.int8 else 1)
    assert plain(tensors, spec) == pytest.approx(wanted, abs=last_bits)
    assert spelt(case) == pytest.approx(wanted, abs=last_bits)
