"""What `metal-edge inspect` says of whole, damaged and foreign bundles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.tiny_bundle import THRESHOLD, build_bundle, seal

from metal_edge.bundle import Bundle, sha256_of
from metal_edge.cli.inspect import run_inspect
from metal_edge.errors import BundleError, MissingInputError
from metal_edge.export.inspect import describe_bundle, reasons_of


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_bundle(tmp_path / "tiny.bundle")


def change(bundle: Path, **changes: Any) -> None:
    """Changes manifest fields and seals it again, with the digests that the files have now."""
    manifest = bundle / "manifest.json"
    fields = {**json.loads(manifest.read_text()), **changes}
    for name in fields["files"]:
        file = bundle / name
        fields["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    manifest.write_text(json.dumps(fields))
    seal(bundle)


def test_a_bundle_as_data(bundle: Path) -> None:
    found = describe_bundle(Bundle.open(bundle))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    model = onnx.load(bundle / "model.onnx").graph
    assert found["graph"]["nodes"] == len(model.node)
    assert sum(row["nodes"] for row in found["graph"]["kinds"].values()) == len(model.node)
    assert found["graph"]["inputs"] == [{"name": "image", "type": "uint8", "shape": [1, 32, 32, 3]}]
    results = {value["name"]: value["shape"] for value in found["graph"]["outputs"]}
    assert results == {"anomaly_map": [1, 8, 8], "score": [1]}
    assert found["sizes"]["model"] == (bundle / "model.onnx").stat().st_size
    assert found["verified"]["files"] == len([p for p in bundle.rglob("*") if p.is_file()])
    floats = [
        numpy_helper.to_array(c) for c in model.initializer if c.data_type == TensorProto.FLOAT
    ]
    wanted = sum(array.nbytes for array in floats)
    assert found["sizes"]["constants"]["float32"]["bytes"] == wanted > 0
    assert found["traffic"]["activations_read"]["uint8"] == 32 * 32 * 3


def test_the_threshold_and_the_golden_margin(bundle: Path) -> None:
    found = describe_bundle(Bundle.open(bundle))
    assert "1 % of good parts" in found["threshold"]["promise"]
    assert "200" in found["threshold"]["promise"]
    (image,) = found["golden"]["images"]
    assert (image["verdict"], image["good"]) == ("pass", True)
    assert image["margin"] == -THRESHOLD
    assert image["tolerances"] == pytest.approx(THRESHOLD / 1e-5)
    change(bundle, provenance={"promise": "as promised"})
    assert describe_bundle(Bundle.open(bundle))["threshold"]["promise"] == "as promised"


def test_reasons_in_whatever_shape_the_manifest_gives_them() -> None:
    provenance = {
        "dataset": "Softmax_1",
        "precision": {
            "fp32_islands": ["Softmax_1", "Elsewhere"],
            "kept": {"Gemm_2": "overflows in FP16"},
            "sweep": [{"layer": "Conv_3", "reason": "costs 0.004 AUROC", "loss": 0.004}],
            "islands": [{"group": "sums", "reason": "overflow", "nodes": ["Add_4", "Add_5"]}],
            "parity": {"images": 3},
        },
    }
    names = {"Softmax_1", "Gemm_2", "Conv_3", "Add_4"}
    assert reasons_of(provenance, names) == {
        "Softmax_1": "fp32 islands",
        "Gemm_2": "overflows in FP16",
        "Conv_3": "costs 0.004 AUROC",
        "Add_4": "sums: overflow",
    }


def test_a_layer_carries_its_reason_into_the_text(
    tmp_path: Path, fp32: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_bundle(tmp_path / "net.bundle")
    (bundle / "model.onnx").write_bytes(fp32.read_bytes())
    layer = next(n for n in onnx.load(fp32).graph.node if n.op_type in {"MatMul", "Gemm"})
    change(bundle, provenance={"precision": {"kept": {layer.name: "measured to matter"}}})
    found = describe_bundle(Bundle.open(bundle))
    reasons = {row["name"]: row["reason"] for row in found["layers"]}
    assert reasons[layer.name] == "measured to matter"
    assert found["layers_by_precision"] == {"fp32": len(found["layers"])}
    run_inspect(bundle, as_json=False)
    said = capsys.readouterr().out
    assert "[1] 1 nodes: measured to matter" in said
    rows = [row.split() for row in said.splitlines() if row.endswith("[1]")]
    assert [layer.name, layer.op_type] in [row[:2] for row in rows]
    size = (bundle / "model.onnx").stat().st_size
    for words in (
        "opset 20",
        f"layers that multiply: {len(found['layers'])} fp32",
        f"sizes: model.onnx {size / 1e6:.2f} MB",
        f"threshold: {found['threshold']['score']:.6g}",
        found["threshold"]["promise"],
        "nearest to the threshold",
        f"one frame, on paper: {found['traffic']['bytes'] / 1e6:.2f} MB through memory",
        "MACs",
        "provenance\n  precision ",
    ):
        assert words in said


def test_one_changed_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        run_inspect(bundle, as_json=True)


def test_right_hashes_around_a_damaged_graph(bundle: Path) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(whole[:-20])
    change(bundle)
    with pytest.raises(BundleError, match="not a sound ONNX file"):
        run_inspect(bundle, as_json=True)


def test_an_onnx_file_in_place_of_a_bundle(bundle: Path) -> None:
    with pytest.raises(MissingInputError, match="is a file, not a bundle"):
        run_inspect(bundle / "model.onnx", as_json=True)
    with pytest.raises(MissingInputError, match="is not a bundle"):
        run_inspect(bundle / "golden", as_json=True)


def inspect_without(bundle: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter where these packages cannot be imported."""
    code = (
        "import sys\n"
        f"for name in {packages!r}:\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['metal-edge', 'inspect', {str(bundle)!r}, '--json']\n"
        "from metal_edge.cli.app import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_needs_no_torch(bundle: Path) -> None:
    done = inspect_without(bundle, "torch", "onnxscript", "onnxsim", "safetensors", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "tiny"


def test_without_onnx_it_says_what_to_install(bundle: Path) -> None:
    done = inspect_without(bundle, "onnx")
    assert done.returncode == 69
    assert "pip install onnx" in done.stderr
    assert "Traceback" not in done.stderr
