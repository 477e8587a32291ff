"""From pictures to decisions, by the commands that README shows."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import onnx
import pytest
from support.broker import Broker
from support.cli import (
    COMMAND,
    Call,
    Outcome,
    Running,
    Trained,
    cli,
    listing,
    must,
    write_parts,
)
from support.daemon_process import STATION, write_settings

from metal_edge.bundle import Bundle
from metal_edge.runtime.load import check_golden, load_runner

FIGURES = {"image_auroc", "pixel_auroc", "pixel_auroc_30", "aupro_30", "image_f1"}
NO_GPU = not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu"))


@pytest.fixture(scope="module")
def bundles(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle per precision."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {name: folder / f"{name}.bundle" for name in ("fp32", "fp16", "int8")}
    for name, path in made.items():
        fast = ("--no-sweep",) if name == "int8" else ()
        result = must("build-engine", trained.run, "--precision", name, *fast, "-o", path, "--json")
        assert result.json["precision"] == name
        assert "building the bundle for ONNX Runtime" in result.err
        if NO_GPU:
            assert "no NVIDIA GPU" in result.err
    return made


def test_training_says_what_came_out(trained: Trained) -> None:
    assert str(trained.run / "checkpoint.safetensors") in trained.said
    assert "validation loss" in trained.said
    assert not (trained.run / "state.safetensors").exists()


def test_evaluate_writes_a_report_and_prints_json(own_run: Path, tmp_path: Path) -> None:
    """Also of a run that was not calibrated yet, and whose exported graph is damaged."""
    (own_run / "thresholds.json").unlink()
    graph = own_run / "model.onnx"
    whole = graph.read_bytes()
    graph.unlink()  # a link to the run that all tests share
    graph.write_bytes(whole[: len(whole) // 2])
    result = must("evaluate", own_run, "-o", tmp_path / "report", "--json").json
    assert result.keys() >= FIGURES
    assert all(0 <= result[name] <= 1 for name in FIGURES)
    assert result["counts"]["good"] == 4
    assert result["counts"]["anomalous"] == 10
    written = listing(tmp_path / "report")
    assert written.keys() == {"report.html", "report.json", "gallery.png"}
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {name: stored[name] for name in FIGURES} == {name: result[name] for name in FIGURES}
    assert graph.read_bytes() == whole


def test_calibrate_states_rate_and_count(own_run: Path, call: Call) -> None:
    said = call("calibrate", own_run).out
    assert "20 % of good parts" in said
    assert "from 4 held-out good images" in said
    stored = json.loads((own_run / "thresholds.json").read_text())
    assert f"threshold {stored['score']:.6g}:" in said


def test_calibrate_refuses_what_the_images_cannot_promise(trained: Trained, call: Call) -> None:
    before = listing(trained.run)
    result = call("calibrate", trained.run, "--false-reject-rate", 0.001)
    assert result.code == 65
    assert "needs at least 999 held-out good images, there are 4" in result.error
    assert listing(trained.run) == before


def test_calibrate_on_further_images(
    trained: Trained, own_run: Path, call: Call, tmp_path: Path
) -> None:
    """Known pictures count once; only unseen ones are added."""
    further = tmp_path / "further"
    shutil.copytree(trained.data / "train" / "good", further)
    for path in (trained.data / "test" / "good").iterdir():
        shutil.copyfile(path, further / f"new-{path.name}")
    result = call("calibrate", own_run, "--images", further, "--json")
    assert result.code == 0, result.err
    assert result.json["calibration_images"] == 8
    shutil.copytree(trained.data / "train" / "good", tmp_path / "known")
    refused = call("calibrate", own_run, "--images", tmp_path / "known")
    assert refused.code == 65
    assert "no good image that the run has not seen" in refused.error


def test_export(trained: Trained, tmp_path: Path) -> None:
    result = must("export", trained.run, "-o", tmp_path / "new" / "x.onnx")
    assert "agrees with the checkpoint" in result.out
    assert listing(tmp_path).keys() == {"new", "new/x.onnx"}


def test_export_with_a_fixed_batch(trained: Trained, tmp_path: Path, call: Call) -> None:
    """Black, white, noise, checks and held-out pictures are compared in its last place."""
    result = call("export", trained.run, "--batch", 3, "-o", tmp_path / "x.onnx")
    assert result.code == 0, result.err
    graph = onnx.load(tmp_path / "x.onnx").graph
    ends = [*graph.input, *graph.output]
    assert [end.type.tensor_type.shape.dim[0].dim_value for end in ends] == [3, 3, 3]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_bundle_proves_itself(bundles: dict[str, Path], precision: str) -> None:
    bundle = Bundle.open(bundles[precision])
    assert bundle.manifest.precision == precision
    with load_runner(bundle) as runner:
        golden = check_golden(bundle, runner)
    assert golden.images >= 2
    kinds = {image.good for image in bundle.golden.images}
    assert kinds == {True, False}


def test_lower_precision_is_smaller(bundles: dict[str, Path]) -> None:
    sizes = {name: (path / "model.onnx").stat().st_size for name, path in bundles.items()}
    assert sizes["int8"] < 0.75 * sizes["fp32"]
    assert sizes["fp16"] < 0.75 * sizes["fp32"]


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA GPU")
def test_tensorrt_without_a_gpu(trained: Trained, tmp_path: Path, call: Call) -> None:
    result = call("build-engine", trained.run, "--backend", "tensorrt", "-o", tmp_path / "b")
    assert result.code == 69
    assert "no NVIDIA GPU" in result.error
    assert "--backend onnxruntime" in result.error
    assert not listing(tmp_path)


def test_evaluate_a_bundle_from_within(
    trained: Trained, bundles: dict[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report must not lie in the bundle, whose files are sealed."""
    bundle = bundles["int8"]
    before = listing(bundle)
    monkeypatch.chdir(bundle)
    result = call("evaluate", ".", "--data", trained.data, "--json")
    assert result.code == 0, result.err
    assert result.json.keys() >= FIGURES
    assert listing(bundle) == before
    assert (bundle.parent / "int8.bundle-report" / "report.html").is_file()


def test_bench(bundles: dict[str, Path]) -> None:
    result = must("bench", bundles["fp32"], bundles["int8"], "--frames", 10, "--json").json
    rows = {row["precision"]: row for row in result["bundles"]}
    assert list(rows) == ["fp32", "int8"]
    assert rows["fp32"]["times_faster_than_first"] == 1
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]


def test_doctor() -> None:
    result = must("doctor", "--json").json
    assert result["ok"] is True
    found = {check["check"]: check for check in result["checks"]}
    assert {"python", "onnxruntime", "training", "tensorrt", "disk", "clock"} <= found.keys()
    if NO_GPU:
        assert "no NVIDIA GPU" in found["tensorrt"]["found"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_cannot_be_written() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "doctor", "--json"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert "No space left" in Outcome(1, "", done.stderr.decode()).error


def test_doctor_on_a_line(line: Path, broker: Broker) -> None:
    good = must("doctor", "--config", write_settings(line / "line.toml", broker), "--json").json
    assert {c["check"] for c in good["checks"]} >= {"settings", "bundle", "camera", "broker"}
    assert all(check["level"] != "FAIL" for check in good["checks"])
    broker.kill()
    config = write_settings(line / "line.toml", broker, bundle="nowhere", camera={"uri": "none"})
    bad = cli("doctor", "--config", config, "--json")
    assert bad.code == 1
    failed = {c["check"]: c for c in bad.json["checks"] if c["level"] == "FAIL"}
    assert failed.keys() == {"bundle", "camera", "broker"}
    assert str(line / "nowhere") in failed["bundle"]["found"]
    assert str(line / "none") in failed["camera"]["found"]
    assert f"{broker.host}:{broker.port}" in failed["broker"]["found"]
    assert all(check["remedy"] for check in failed.values())


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="no mosquitto_sub")
def test_the_daemon_decides_on_a_line(
    trained: Trained, bundles: dict[str, Path], broker: Broker, tmp_path: Path
) -> None:
    """Pictures of the test set in free run; the decisions as mosquitto's own client sees them."""
    shown = tmp_path / "shown"
    shown.mkdir()
    for number in range(2):
        shutil.copyfile(trained.data / f"test/good/{number:03d}.png", shown / f"good-{number}.png")
        shutil.copyfile(trained.data / f"test/stain/{number:03d}.png", shown / f"bad-{number}.png")
    settings = write_settings(
        tmp_path / "line.toml",
        broker,
        bundle=str(bundles["int8"]),
        camera={"uri": str(shown), "mode": "latest", "fps": 10.0, "loop": True},
    )
    heard = subprocess.Popen(
        [
            *("mosquitto_sub", "-h", broker.host, "-p", str(broker.port), "-V", "mqttv5"),
            *("-t", f"{STATION}/decision", "-C", "8", "-W", "60"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with Running(tmp_path / "daemon.log", "run", "--config", settings) as daemon:
        rows = [json.loads(row) for row in heard.communicate(timeout=60)[0].splitlines()]
        assert daemon.stop(signal.SIGTERM) == 0
    bundle = Bundle.open(bundles["int8"])
    assert len(rows) == 8
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    for row in rows:
        assert row["model"]["sha256"] == bundle.digest
        assert row["threshold"] == bundle.thresholds.score
        assert row["frame_id"].endswith(".png")
        below = row["score"] < row["threshold"]
        assert row["verdict"] == ("pass" if below else "reject")


def test_training_again(trained: Trained, call: Call) -> None:
    before = listing(trained.run)
    again = call(*trained.train)
    assert again.code == 0
    assert "already trained" in again.out
    other = call(*trained.train, "--seed", 1)
    assert other.code == 73
    assert str(trained.run) in other.error
    assert "--fresh" in other.error
    assert listing(trained.run) == before


def test_a_plain_folder_of_good_pictures_afresh(own_run: Path, tmp_path: Path, call: Call) -> None:
    """Other pictures in place of a finished run, of which nothing stays."""
    old = listing(own_run)
    parts = write_parts(tmp_path / "parts", 12)
    must("train", parts, "-o", own_run, "--epochs", 1, "--batch-size", 8, "--fresh")
    new = listing(own_run)
    assert new.keys() == {"run.json", "history.json", "checkpoint.safetensors"}
    assert new["checkpoint.safetensors"] != old["checkpoint.safetensors"]
    result = call("evaluate", own_run)
    assert result.code == 78
    assert f"{parts} has no test folder" in result.error
    assert "test/good and test/<defect>" in result.error
    assert listing(own_run) == new
