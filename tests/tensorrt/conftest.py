"""Graphs for TensorRT's own packages: `make test-tensorrt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # this file is also read where nothing here is collected
    from support.tensorrt_graphs import Graphs

MODELS = ("metal", "metal-features", "l2bt", "anovit")


@pytest.fixture(scope="session", params=MODELS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Each model's default network, of real size."""
    from support.tensorrt_graphs import Graphs

    return Graphs({"kind": request.param}, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """MeTAL on 32 x 32 pixels."""
    from support.tensorrt_graphs import Graphs

    sizes = {"image_size": 32, "patch_size": 8, "embedding": 16, "heads": 2, "blur_sigma": 2.0}
    hidden = {"square_hidden": 16, "stripe_hidden": 16, "decoder_hidden": (16,)}
    return Graphs({"kind": "metal", **sizes, **hidden}, tmp_path_factory.mktemp("tiny"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of docs/tensorrt.md, from what the tests have noted as `correlations`."""
    rows = [
        value
        for report in terminalreporter.stats.get("passed", ())
        for name, value in report.user_properties
        if name == "correlations"
    ]
    if rows:
        terminalreporter.section("INT8 maps against FP32's")
        terminalreporter.write_line(
            "| correlation of maps | ONNX Runtime's INT8 | TensorRT's, FP32 elsewhere"
            " | TensorRT's, FP16 elsewhere |\n|---|---|---|---|"
        )
        for row in rows:
            terminalreporter.write_line(row)
