"""A real bundle around a hand-made ONNX graph, so that daemon tests need no training.

The model's anomaly map is brightness / 255 per cell (mean over channels and a cell of pixels),
its score the map's maximum: a black picture scores 0, a white one 1, and the threshold is 0.5.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

SIZE = 32
CELL = 4
THRESHOLD = 0.5
# A grey level of a good part that is no black picture yet, and sets no fault of a model off.
DARK = 20


def write_image(
    path: Path, level: int, size: tuple[int, int] = (SIZE, SIZE), spot: int = 0
) -> None:
    """A PNG of one grey `level`; `spot` > 0 paints a white square of that size at (8, 8)."""
    image = np.full((size[1], size[0], 3), level, dtype=np.uint8)
    if spot:
        image[8 : 8 + spot, 8 : 8 + spot] = 255
    assert cv2.imwrite(str(path), image)


def write_dark_video(path: Path, frames: int) -> None:
    """A Motion JPEG file of DARK pictures at the model's size."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (SIZE, SIZE))
    assert writer.isOpened()
    for _ in range(frames):
        writer.write(np.full((SIZE, SIZE, 3), DARK, np.uint8))
    writer.release()


def write_model(path: Path, fault: str = "", turns: int = 600_000) -> None:
    """The ONNX file. `fault`: "" | "nan_map" | "nan_score" | "fails" (on bright pictures) | "slow"
    (on pictures that score above 0.3; 600 000 `turns` take about a second).
    """
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])]
    side = SIZE // CELL
    outputs = [
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", side, side]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
    ]
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "zero": np.array(0, np.float32),
        "dark": np.array(0.1, np.float32),
        "channel_axis": np.array([1], np.int64),
        "all_axes": np.array([1, 2], np.int64),
        "brighter": np.array(0.3, np.float32),
        "turns": np.array(turns, np.int64),
        "always": np.array(True),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[CELL] * 2, strides=[CELL] * 2
        ),
        helper.make_node("ReduceMean", ["pooled", "channel_axis"], ["good_map"], keepdims=0),
        helper.make_node("ReduceMax", ["good_map", "all_axes"], ["good_score"], keepdims=0),
        *_faulty_end(fault),
    ]
    used = {name for node in nodes for name in node.input}
    initializers = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in constants.items()
        if name in used
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _faulty_end(fault: str) -> list[onnx.NodeProto]:
    """Pictures brighter than 0.1 set the fault off; the golden image, black, does not."""
    bright = [
        helper.make_node("Sub", ["dark", "good_score"], ["margin"]),
        helper.make_node("Sqrt", ["margin"], ["nan_if_bright"]),
        helper.make_node("Mul", ["nan_if_bright", "zero"], ["poison"]),
    ]
    plain_map = helper.make_node("Identity", ["good_map"], ["anomaly_map"])
    plain_score = helper.make_node("Identity", ["good_score"], ["score"])
    if fault == "":
        return [plain_map, plain_score]
    if fault == "nan_score":
        return [*bright, plain_map, helper.make_node("Add", ["good_score", "poison"], ["score"])]
    if fault == "nan_map":
        # [N] against [N, h, w] broadcasts for the daemon's N = 1.
        return [
            *bright,
            helper.make_node("Add", ["good_map", "poison"], ["anomaly_map"]),
            plain_score,
        ]
    if fault == "slow":
        return [
            helper.make_node("Greater", ["good_score", "brighter"], ["is_slow"]),
            helper.make_node("Cast", ["is_slow"], ["slow_int"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["slow_int"], ["slow_once"], keepdims=0),
            helper.make_node("Mul", ["slow_once", "turns"], ["trips"]),
            helper.make_node("Loop", ["trips", "always", "good_score"], ["score"], body=_turn()),
            plain_map,
        ]
    assert fault == "fails"
    # A gather beyond the end: index 0 for dark pictures, 9 for bright ones.
    return [
        helper.make_node("Greater", ["good_score", "dark"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["bright_index"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["nine"], value_int=9),
        helper.make_node("Mul", ["bright_index", "nine"], ["index"]),
        helper.make_node("Gather", ["good_score", "index"], ["score"], axis=0),
        plain_map,
    ]


def _turn() -> onnx.GraphProto:
    """A loop's body that carries the score round and round."""
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["N"]),
    ]
    outputs = [
        helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, ["N"]),
    ]
    nodes = [
        helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        helper.make_node("Identity", ["carried"], ["carried_out"]),
    ]
    return helper.make_graph(nodes, "turn", inputs, outputs)


def build_bundle(
    path: Path,
    *,
    fault: str = "",
    turns: int = 600_000,
    threshold: float = THRESHOLD,
    source_size: tuple[int, int] | None = (SIZE, SIZE),
    crop: tuple[int, int, int, int] | None = None,
) -> Path:
    """Writes a complete bundle with right hashes and one golden image (black, score 0)."""
    (path / "golden").mkdir(parents=True)
    write_model(path / "model.onnx", fault, turns)
    write_image(path / "golden" / "000.png", 0)
    _write_json(
        path / "golden" / "golden.json",
        {"tolerance": 1e-5, "images": [{"file": "golden/000.png", "score": 0.0, "good": True}]},
    )
    _write_json(
        path / "thresholds.json",
        {"score": threshold, "false_reject_rate": 0.01, "calibration_images": 200},
    )
    width, height = source_size or (None, None)
    _write_json(
        path / "manifest.json",
        {
            "schema_version": 1,
            "name": "tiny",
            "version": "1",
            "created_utc": "2026-01-01T00:00:00Z",
            "model": {"family": "brightness", "score_share": 0.0},
            "precision": "fp32",
            "backend": "onnxruntime",
            "preprocess": {
                "source_width": width,
                "source_height": height,
                "crop": crop,
                "width": SIZE,
                "height": SIZE,
            },
            "files": _describe(path),
        },
    )
    seal(path)
    return path


def describe_again(path: Path) -> None:
    """Makes a bundle whole after a change to one of its files."""
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    _write_json(path / "manifest.json", {**manifest, "files": _describe(path)})
    seal(path)


def _describe(path: Path) -> dict[str, dict[str, object]]:
    return {
        file.relative_to(path).as_posix(): {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith("manifest.")
    }


def flip_byte(path: Path) -> None:
    """One byte of the model, as a copy that went wrong or a hand that meddles."""
    model = path / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)


def seal(path: Path) -> None:
    """Writes the digest of a bundle's manifest, again after a change to it."""
    digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    (path / "manifest.sha256").write_text(f"{digest}  manifest.json\n", encoding="ascii")


def probe(level: int) -> NDArray[np.uint8]:
    """One input batch of a uniform grey level."""
    return np.full((1, SIZE, SIZE, 3), level, dtype=np.uint8)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
