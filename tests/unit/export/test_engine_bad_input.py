"""`build-engine BUNDLE` on what is no bundle of ours, and on a full disk: the old bundle stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from support.cli import Call, called, listing
from support.small_disk import small_disk as mounted
from support.tensorrt_machine import Machine
from support.tiny_bundle import build_bundle, seal

from metal_edge.bundle import sha256_of
from metal_edge.export.tensorrt_builder import build_plan


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    with called(monkeypatch, capfd) as calling:
        yield calling


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "64k") as place:
        yield place


def wrong_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 99


def foreign_input(model: ModelProto) -> None:
    """A float picture, channels first, as most ONNX files want it."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def foreign_outputs(model: ModelProto) -> None:
    last = next(node for node in model.graph.node if "score" in node.output)
    last.output[0] = model.graph.output[1].name = "logits"


def unknown_node(model: ModelProto) -> None:
    extra = helper.make_node("Mystery", ["score"], ["unused"], "mystery", domain="elsewhere")
    model.graph.node.append(extra)
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))


FOREIGN: dict[Callable[[ModelProto], None], str] = {
    wrong_opset: "opset",
    foreign_input: "needs one uint8 NHWC input",
    foreign_outputs: "no outputs anomaly_map and score",
    unknown_node: "Mystery",
}


def put(bundle: Path, content: bytes) -> None:
    """Other bytes as the bundle's graph, and right hashes around them."""
    file, manifest = bundle / "model.onnx", bundle / "manifest.json"
    file.write_bytes(content)
    fields = json.loads(manifest.read_text())
    fields["files"]["model.onnx"] = {"size": len(content), "sha256": sha256_of(file)}
    manifest.write_text(json.dumps(fields))
    seal(bundle)


@pytest.mark.parametrize("spoil", FOREIGN, ids=lambda spoil: spoil.__name__)
def test_a_foreign_graph_with_right_hashes(
    tmp_path: Path, call: Call, spoil: Callable[[ModelProto], None]
) -> None:
    source, old = build_bundle(tmp_path / "source"), build_bundle(tmp_path / "old")
    model = onnx.load(source / "model.onnx")
    spoil(model)
    put(source, model.SerializeToString())
    before = listing(tmp_path)
    refused = call("build-engine", source, "--backend", "onnxruntime", "-o", old)
    assert refused.code == 65, refused
    assert "model.onnx" in refused.error
    assert FOREIGN[spoil] in refused.error
    assert listing(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"text", b"half"])
def test_what_is_no_graph_at_all(tmp_path: Path, call: Call, content: bytes) -> None:
    source, old = build_bundle(tmp_path / "source"), build_bundle(tmp_path / "old")
    whole = (source / "model.onnx").read_bytes()
    put(source, whole[: len(whole) // 2] if content == b"half" else content)
    before = listing(tmp_path)
    refused = call("build-engine", source, "--backend", "onnxruntime", "-o", old)
    assert refused.code == 65, refused
    assert "ONNX Runtime cannot load" in refused.error
    assert listing(tmp_path) == before


def test_a_disk_without_space_for_the_bundle(tmp_path: Path, call: Call, small_disk: Path) -> None:
    source, old = build_bundle(tmp_path / "source"), build_bundle(small_disk / "old")
    (small_disk / "filler").write_bytes(b"x" * (40 << 10))
    before = listing(small_disk)
    refused = call("build-engine", source, "--backend", "onnxruntime", "-o", old)
    assert refused.code == 73, refused
    assert "No space left on device" in refused.error
    assert listing(small_disk) == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_without_space_for_the_plan(
    tmp_path: Path, call: Call, small_disk: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The reason is told of a build that failed, though its log cannot be kept either."""
    machine = Machine(small_disk, monkeypatch)
    source, old = build_bundle(tmp_path / "source"), build_bundle(tmp_path / "old")

    def fill(*arguments: object) -> bytes:
        (small_disk / "filler").write_bytes(b"x" * (64 << 10))
        machine.trt.refuses = "no implementation for node 7" if fails else ""
        return build_plan(*arguments) + bytes(64 << 10)  # type: ignore[arg-type]

    monkeypatch.setattr("metal_edge.export.tensorrt_attention.build_plan", fill)
    before = listing(old)
    refused = call("build-engine", source, "--backend", "tensorrt", "-o", old)
    assert refused.code == (69 if fails else 73), refused
    assert "No space left on device" in refused.error
    wanted = ("node 7", "its log is lost") if fails else (f"cannot write {small_disk}",)
    assert all(words in refused.error for words in wanted), refused.error
    assert listing(old) == before
    assert not [path for path in small_disk.iterdir() if path.is_dir()]
    machine.check_released()
