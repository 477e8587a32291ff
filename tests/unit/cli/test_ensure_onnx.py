"""A run's exported graph is used again only if it is what an export would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from metal_edge.cli import workflow
from metal_edge.cli.workflow import ONNX, OpenRun, ensure_onnx
from metal_edge.training.run import CHECKPOINT


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Places that were exported to; what is exported is a counter."""
    done: list[Path] = []

    def export(_run: OpenRun, path: Path) -> None:
        done.append(path)
        path.write_text(f"graph {len(done)}")

    monkeypatch.setattr(workflow, "export_run", export)
    return done


def test_it_is_exported_again_when_anything_differs(
    tmp_path: Path, exports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OpenRun(tmp_path, cast(Any, None), tmp_path)
    (tmp_path / CHECKPOINT).write_text("weights")
    for _ in range(2):
        assert ensure_onnx(run) == tmp_path / ONNX
    assert len(exports) == 1

    (tmp_path / CHECKPOINT).write_text("other weights")
    ensure_onnx(run)
    assert len(exports) == 2

    (tmp_path / ONNX).write_text("torn")
    ensure_onnx(run)
    assert len(exports) == 3

    monkeypatch.setattr(workflow, "GRAPH", workflow.GRAPH + 1)
    ensure_onnx(run)
    ensure_onnx(run)
    assert len(exports) == 4
