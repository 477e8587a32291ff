"""What is asked of TensorRT's builder, and what becomes of its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import MARK, FakeTensorRt, Severity
from support.tiny_bundle import SIZE, write_model

from metal_edge.errors import BundleError, DataError, UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan
from metal_edge.runtime.plan_cache import MAX_BATCH


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def trt() -> FakeTensorRt:
    return FakeTensorRt(FakeCuda)


def build(trt: FakeTensorRt, model: Path, options: BuildOptions | None = None) -> BuildLog:
    log = BuildLog(lambda *_: None)
    assert build_plan(trt, model, options or BuildOptions(), log).startswith(MARK)
    return log


def test_profile_and_workspace(trt: FakeTensorRt, model: Path) -> None:
    log = build(trt, model, BuildOptions(workspace_mib=256))
    one = (1, SIZE, SIZE, 3)
    assert trt.builds == [
        {
            "verbosity": "DETAILED",
            "cleared": ["TF32"],
            "workspace": 256 << 20,
            "profile": {"image": (one, one, (MAX_BATCH, SIZE, SIZE, 3))},
        }
    ]
    assert log.text == "INFO building\n"


def test_a_static_batch_needs_no_profile_and_no_workspace_is_the_builders_choice(
    trt: FakeTensorRt, model: Path
) -> None:
    static = onnx.load(model)
    for value in (*static.graph.input, *static.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(static, model)
    build(trt, model)
    assert trt.builds == [{"verbosity": "DETAILED", "cleared": ["TF32"]}]


def test_timings_are_kept_between_builds(trt: FakeTensorRt, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "timings"
    for _ in range(2):
        build(trt, model, BuildOptions(timing_cache=file))
    assert [asked["timings"] for asked in trt.builds] == [[b""], [b"timed "]]
    assert file.read_bytes() == b"timed timed "


def test_timings_of_another_gpu_are_measured_anew(
    trt: FakeTensorRt, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "timings"
    file.write_bytes(b"foreign")
    log = build(trt, model, BuildOptions(timing_cache=file))
    assert trt.builds[0]["timings"] == [b"foreign", b""]
    assert file.read_bytes() == b"timed "
    assert f"{file} is of another GPU" in log.text


def test_timings_that_cannot_be_read(trt: FakeTensorRt, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot read the timing cache .*--timing-cache"):
        build(trt, model, BuildOptions(timing_cache=tmp_path))
    assert not trt.builds


def test_timings_that_cannot_be_written_do_not_cost_the_plan(
    trt: FakeTensorRt, model: Path, tmp_path: Path
) -> None:
    """A name that may stand there, but for which no longer one can be written beside it."""
    log = build(trt, model, BuildOptions(timing_cache=tmp_path / ("x" * 250)))
    assert "WARNING the timing cache is not kept: cannot write" in log.text


@pytest.mark.parametrize("what", ["Builder", "OnnxParser"])
@pytest.mark.parametrize("words", ["CUDA initialization failure with error: 35", ""])
def test_what_tensorrt_does_not_create(
    trt: FakeTensorRt, model: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    """Its bindings tell nothing but a nullptr, as the real ones do in tests/tensorrt."""

    def fails(*arguments: Any) -> None:
        if words:
            arguments[-1].log(Severity.ERROR, words)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, what, fails)
    expected = words or r"pybind11::init\(\): factory"
    with pytest.raises(UnavailableError, match=rf"cannot create a \w+ \({expected}.*driver"):
        build(trt, model)


def test_the_parsers_words_come_with_the_node(trt: FakeTensorRt, model: Path) -> None:
    wrong = onnx.load(model)
    wrong.graph.node[0].op_type, wrong.graph.node[0].name = "Transpose", "node_permute"
    onnx.save(wrong, model)
    words = r"node 0 node_permute \(Transpose\): first input has type UInt8 but must have"
    with pytest.raises(DataError, match=words):
        build(trt, model)
    assert not trt.builds


def test_a_foreign_network_is_refused_before_minutes_of_building(
    trt: FakeTensorRt, model: Path
) -> None:
    foreign = onnx.load(model)
    del foreign.graph.output[1]
    onnx.save(foreign, model)
    with pytest.raises(BundleError, match="no tensor score"):
        build(trt, model)
    assert not trt.builds


def test_the_builders_words(trt: FakeTensorRt, model: Path, tmp_path: Path) -> None:
    trt.refuses = "no implementation for node 7"
    file = tmp_path / "timings"
    with pytest.raises(UnavailableError, match="no implementation for node 7"):
        build(trt, model, BuildOptions(timing_cache=file))
    assert not file.exists()


def test_progress_is_that_of_the_outermost_phase(trt: FakeTensorRt, model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_plan(trt, model, BuildOptions(), BuildLog(lambda *step: seen.append(step)))
    assert seen == [("Building engine", done, 2) for done in range(3)]


def test_ctrl_c_stops_the_build_at_its_next_step(trt: FakeTensorRt, model: Path) -> None:
    asked: list[bool] = []
    trt.during_build = lambda: asked.append(True)
    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, model, BuildOptions(), BuildLog(lambda *_: None, lambda: bool(asked)))


def test_a_broken_display_does_not_throw_through_tensorrt(trt: FakeTensorRt, model: Path) -> None:
    reached: list[bool] = []
    trt.during_build = lambda: reached.append(True)

    def report(phase: str, done: int, total: int) -> None:
        raise BrokenPipeError(phase)

    with pytest.raises(BrokenPipeError):
        build_plan(trt, model, BuildOptions(), BuildLog(report))
    assert reached, "the exception crossed the builder"
