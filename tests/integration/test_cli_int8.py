"""build-engine in INT8: sweep, record, refused frames; the parity gate and what it leaves."""

from __future__ import annotations

import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
from onnx import numpy_helper
from support.cli import Call, Trained, listing, write_parts
from support.small_disk import small_disk
from support.tiny_bundle import build_bundle

from metal_edge.bundle import Bundle
from metal_edge.cli import bundling, int8_build
from metal_edge.cli.int8_build import Int8Options
from metal_edge.cli.workflow import open_run
from metal_edge.data import load_dataset
from metal_edge.export import attention_surgery
from metal_edge.export.precision import Conversion, EnginePrecision, write_fp16
from metal_edge.quantize.sweep import Budget, try_each

INT8 = ("--precision", "int8", "--no-sweep")


@pytest.fixture(scope="module")
def good_parts(trained: Trained) -> list[Path]:
    return [sample.path for sample in load_dataset(trained.data).train]


def folder_of(place: Path, pictures: list[Path]) -> Path:
    place.mkdir()
    for number, picture in enumerate(pictures):
        os.link(picture, place / f"{number:03d}.png")
    return place


def test_the_sweep_is_shown_and_recorded(
    trained: Trained, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine would not come to try every block within the sweep's minute.
    monkeypatch.setattr(int8_build, "try_each", partial(try_each, limit_s=math.inf))
    bundle, record = tmp_path / "a.bundle", tmp_path / "line1"
    options = ("--precision", "int8", "--calibration", "percentile", "--calibration-record", record)
    built = call("build-engine", trained.run, *options, "-o", bundle, "--json")
    assert built.code == 0, built.err
    said = built.json
    accuracy = said["accuracy"]
    blocks = {row["block"] for row in accuracy["sweep"]}
    assert {"backbone.stages.1.0", "students.0"} <= blocks
    assert set(accuracy["int8_blocks"]) | set(accuracy["fp32_blocks"]) == blocks
    assert all(row["alone"]["map_correlation"] > 0.9 for row in accuracy["sweep"])
    assert {row["block"] for row in accuracy["sweep"] if row["fp32"]} == set(
        accuracy["fp32_blocks"]
    )
    budget = max(accuracy["budget"]["auroc_loss"], accuracy["budget"]["image_auroc_step"])
    assert accuracy["result"]["image_auroc_loss"] <= budget + 1e-6
    assert accuracy["result"]["pixel_auroc_loss"] <= accuracy["budget"]["auroc_loss"]
    manifest = Bundle.open(bundle).manifest.provenance
    assert manifest["precision"]["accuracy"] == accuracy
    assert manifest["parity"] == said["parity"]
    assert manifest["decision_margin"] == said["decision_margin"]
    for island in manifest["precision"]["fp32_islands"]:
        assert island["reason"]
        assert island["nodes"]
    rows = call("inspect", bundle, "--json").json["layers"]
    assert {row["precision"] for row in rows} == {"int8", "fp32"}
    assert all(row["reason"] for row in rows if row["precision"] == "fp32"), rows

    assert [path.name for path in record.iterdir()] == ["calibration.json"]
    evidence = json.loads((record / "calibration.json").read_bytes())
    assert evidence["method"] == "percentile"
    recorded = json.loads((trained.run / "run.json").read_bytes())["split"]
    assert {f["sha256"] for f in evidence["frames"]} == {f["sha256"] for f in recorded["train"]}
    assert all(frame["reason"] for frame in evidence["frames"])
    graph = onnx.load(bundle / "model.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantising = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantising
    for node in quantising:
        recorded = evidence["tensors"][node.input[0]]
        assert recorded["scale"] == pytest.approx(float(constants[node.input[1]]), rel=1e-5)
        assert recorded["zero_point"] == constants[node.input[2]]
    assert evidence["accuracy"] == accuracy


def test_the_table_names_blocks_margin_and_tolerances(
    trained: Trained, tmp_path: Path, call: Call
) -> None:
    built = call("build-engine", trained.run, *INT8, "-o", tmp_path / "b")
    assert built.code == 0, built.err
    for words in ("all blocks in INT8", "adversarial images", "decision margin", "tolerance"):
        assert words in built.out
    (row,) = (line for line in built.out.splitlines() if line.startswith("on the golden images"))
    bundle = Bundle.open(tmp_path / "b")
    golden = bundle.manifest.provenance["precision"]["accuracy"]["golden"]
    assert f"{golden['map_correlation']:.5f}" in row
    assert golden["images"] == len(bundle.golden.images) - 1, "the negative has no truth"
    assert golden["defective_images"] == sum(not g.good for g in bundle.golden.images) - 1
    assert golden["pixel_auroc_loss"] is not None


def test_a_loss_on_the_golden_images_is_warned_of(
    trained: Trained, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that any change of a map exceeds."""
    monkeypatch.setattr(int8_build, "Budget", partial(Budget, labelled=(1e-9, 1e-9)))
    built = call("build-engine", trained.run, *INT8, "-o", tmp_path / "b", "--json")
    assert built.code == 0, built.err
    assert not built.json["accuracy"]["golden"]["within_budget"]
    golden = built.json["accuracy"]["golden"]["images"]
    wanted = f"on the {golden} golden images INT8 exceeds the accuracy budget"
    assert any(wanted in warning for warning in built.json["warnings"])


def test_frames_of_another_place_are_warned_of(
    trained: Trained, tmp_path: Path, call: Call
) -> None:
    noise = write_parts(tmp_path / "noise", 12, size=(96, 96))
    options = (*INT8, "--calibration-images", noise, "--json")
    built = call("build-engine", trained.run, *options, "-o", tmp_path / "b")
    assert "do not look like the training images" in built.err
    if built.code == 0:  # the gate may refuse what such ranges do
        assert any("do not look like" in warning for warning in built.json["warnings"])


def test_frames_that_are_refused(
    trained: Trained, good_parts: list[Path], tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "b"

    def refused(place: Path) -> str:
        options = (*INT8, "--calibration-images", place)
        outcome = call("build-engine", trained.run, *options, "-o", out)
        assert outcome.code in {65, 66}, outcome
        assert not out.exists()
        return outcome.error

    few = folder_of(tmp_path / "few", good_parts[:5])
    assert "needs 8" in refused(few)
    twice = folder_of(tmp_path / "twice", [*good_parts[:12], good_parts[0]])
    assert "is a copy of" in refused(twice)
    resaved = folder_of(tmp_path / "resaved", good_parts)
    with PIL.Image.open(good_parts[0]) as picture:
        picture.save(resaved / "other.bmp")
    assert "twice" in refused(resaved)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pictures" in refused(empty)
    assert "does not exist" in refused(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "fp16", "--no-sweep"), "no effect"),
        (("--precision", "fp32", "--calibration", "entropy"), "no effect"),
        (("--precision", "int8", "--accuracy-budget", "-1"), "between 0 and 1"),
        (("--precision", "int8", "--accuracy-budget", "nan"), "between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(
    trained: Trained, tmp_path: Path, call: Call, options: tuple[str, ...], words: str
) -> None:
    outcome = call("build-engine", trained.run, *options, "-o", tmp_path / "b")
    assert outcome.code == 78
    assert words in outcome.error
    assert not listing(tmp_path)


def test_the_plugins_int8_attention_is_judged_before_a_device_sees_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, it is no candidate; the bundle, whose own attention is right, is written."""
    ranges = attention_surgery.read_amplitudes

    def clipped(model: onnx.ModelProto) -> dict[str, float]:
        return {name: value / 50 for name, value in ranges(model).items()}

    monkeypatch.setattr(attention_surgery, "read_amplitudes", clipped)
    options = bundling.BuildOptions(
        EnginePrecision.INT8,
        int8=Int8Options(sweep=False),
        backend="tensorrt",
        attention="auto",
    )
    built = bundling.build_bundle(open_run(trained.run), tmp_path / "b", options)
    notes = built.bundle.manifest.provenance["precision"]
    assert {"stem", "other products"} <= {group["group"] for group in notes["fp16_islands"]}
    assert "softmax" in {group["group"] for group in notes["fp32_islands"]}
    found = notes["plugin_int8"]
    assert found["attentions"] > 0
    assert "int8 with the plugin's attention differs from fp32" in found["refused"]
    warning = f"the plugin's int8 attention is no candidate: {found['refused']}"
    assert warning in built.warnings


def test_no_space_for_working_files(
    own_run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run, or where libraries have their temporary files: the old bundle stays."""
    old = build_bundle(tmp_path / "old")
    before = listing(old)
    with small_disk(own_run / f".build.{os.getpid()}.partial", "1m"):
        refused = call("build-engine", own_run, "--precision", "fp16", "-o", old)
    assert refused.code == 73, refused
    assert "cannot write working files (No space left on device)" in refused.error
    assert f"free space in {own_run}" in refused.error
    with small_disk(tmp_path / "temporary", "1m") as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        refused = call("build-engine", own_run, *INT8, "-o", old)
        assert refused.code == 73, refused
        assert f"and in {place}" in refused.error
    assert listing(old) == before


def test_no_space_for_the_record(trained: Trained, tmp_path: Path, call: Call) -> None:
    """A bundle without the evidence that was asked for must not take the old one's place."""
    old = build_bundle(tmp_path / "old")
    before = listing(old)
    with small_disk(tmp_path / "disk", "16k") as place:
        options = (*INT8, "--calibration-record", place / "line1")
        refused = call("build-engine", trained.run, *options, "-o", old)
        assert refused.code == 73, refused
        assert f"cannot write {place / 'line1' / 'calibration.json'}" in refused.error
        assert not [path for path in place.rglob("*") if path.is_file()]
    assert listing(old) == before


def test_a_wrong_conversion_never_becomes_a_bundle(
    own_run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one layer 5 % too large: the old bundle stays, no working file is left."""
    bundle = tmp_path / "a.bundle"
    command = ("build-engine", own_run, "--precision", "fp16", "-o", bundle)
    killed = own_run / ".build.4194305.partial"  # above the highest process number
    killed.mkdir()
    assert call(*command).code == 0
    assert not killed.exists()
    before = listing(tmp_path)  # the run too

    def spoilt(source: Path, destination: Path) -> Conversion:
        done = write_fp16(source, destination)
        model = onnx.load(destination)
        largest = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
        values = numpy_helper.to_array(largest)
        scaled = (values * 1.05).astype(values.dtype)
        largest.CopyFrom(numpy_helper.from_array(scaled, largest.name))
        onnx.save(model, destination)
        return done

    monkeypatch.setattr(bundling, "write_fp16", spoilt)
    outcome = call(*command)
    assert outcome.code == 1
    assert "fp16 differs from fp32" in outcome.error
    assert listing(tmp_path) == before
    assert call(*command, "--force").code == 64
