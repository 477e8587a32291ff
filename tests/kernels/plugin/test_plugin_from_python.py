"""What Python writes into graphs, the real library takes: TensorRT's registry, our creators."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.attention_bundle import attention_model

import metal_edge
from metal_edge.export.attention_surgery import replace_attention
from metal_edge.export.masked_attention import Fill, Int8Scales, MaskedAttentionSpec
from tools.kernels.plugin import Built
from tools.tensorrt.wheels import UnobtainableError, combined

PROBE = Path(__file__).with_name("load_probe.py")
SPARSE = np.random.default_rng(0).random((4, 40, 40)) < 0.2
GOOD: dict[str, MaskedAttentionSpec] = {
    "by the surgery": MaskedAttentionSpec.from_node(
        next(
            node
            for node in replace_attention(attention_model()).model.graph.node
            if node.op_type == "MaskedAttention"
        )
    ),
    "own mask per head": MaskedAttentionSpec.of_mask(SPARSE, 4),
    "zero scores": MaskedAttentionSpec.of_mask(~np.eye(64, dtype=bool), 2, fill=Fill.ZERO),
    "slopes": MaskedAttentionSpec.of_mask(
        SPARSE[0], 4, scale=0.125, slopes=(2.0, 1.0, 0.5, 0.0), columns=8
    ),
    "int8": MaskedAttentionSpec.of_mask(SPARSE[0], 4, int8=Int8Scales(0.1, 0.2, 0.3, 0.4)),
}
BAD = {
    "short mask": GOOD["int8"].attributes() | {"mask": "ff"},
    "no columns": {k: v for k, v in GOOD["slopes"].attributes().items() if k != "columns"},
    "one scale": GOOD["zero scores"].attributes() | {"q_scale": 0.5},
}


@pytest.fixture(scope="module")
def answer(cuda: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    try:
        path = combined("lean")
    except UnobtainableError as error:
        pytest.skip(str(error))
    text = tmp_path_factory.mktemp("wrong") / "text.so"
    text.write_text("no library")
    asked = {
        "library": str(cuda.library),
        "wrong": [str(text), str(text.with_name("missing.so"))],
        "nodes": [spec.attributes() for spec in GOOD.values()] + list(BAD.values()),
    }
    roots = [path, str(Path(metal_edge.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, str(PROBE)], input=json.dumps(asked),
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": os.pathsep.join(roots), "PATH": os.environ.get("PATH", "")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "sha256": _sha256(cuda.library)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_loaded_and_found(answer: dict[str, Any]) -> None:
    assert answer["loaded"] == [answer["sha256"]] * 2


def test_what_is_no_library_is_refused(answer: dict[str, Any]) -> None:
    text, missing = answer["refused"]
    assert "TensorRT cannot load the plugin" in text
    assert "cannot be read (No such file" in missing


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_the_creator_takes_what_the_specification_allows(answer: dict[str, Any], name: str) -> None:
    assert answer["made"][[*GOOD, *BAD].index(name)] == (name in GOOD)
