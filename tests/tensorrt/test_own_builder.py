"""The project's own builder, run on a real TensorRT builder (RTX, without a GPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tensorrt_graphs import Graphs

from tools.tensorrt.rtx import OwnBuild, build_own
from tools.tensorrt.wheels import UnobtainableError


def attempt(graph: Path) -> OwnBuild:
    try:
        return build_own(graph)
    except UnobtainableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_builds_tells_phases_and_keeps_the_words_of_tensorrt(
    tiny: Graphs, precision: str
) -> None:
    done = attempt(getattr(tiny, precision))
    assert not done.error
    assert done.bytes > 10_000
    assert any(steps > 0 for steps in done.phases.values())
    assert "Engine generation completed" in done.log


def test_an_error_of_the_parser_is_told_with_its_node(tiny: Graphs) -> None:
    done = attempt(tiny.onnxruntime)
    assert done.error.startswith("DataError: TensorRT cannot parse")
    assert "DequantizeLinear" in done.error
    assert "\n" not in done.error


def test_a_truncated_file_is_refused(tiny: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    content = tiny.fp16.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert attempt(path).error.startswith(f"DataError: TensorRT cannot parse {path}")
