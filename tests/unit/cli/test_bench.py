"""Timing in turns with a clock of our own, and the command on tiny bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.tiny_bundle import build_bundle, seal

from metal_edge.bundle import sha256_of
from metal_edge.cli.bench import resident_memory, run_bench
from metal_edge.errors import SettingsError, UnavailableError
from metal_edge.runtime.timing import WARM_UP, take_turns


class FakeTime:
    """Seconds that pass only while something works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def work(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds(self.log.count(name))
            self.log.append(name)

        return call


def test_turns_are_timed_each_and_the_warm_up_is_not() -> None:
    time = FakeTime()
    slow = time.work("slow", lambda n: 9.0 if n < WARM_UP else 0.004)
    fast = time.work("fast", lambda n: 9.0 if n < WARM_UP else 0.001 * (n - WARM_UP + 1))
    done: list[int] = []
    times = take_turns([slow, fast], 4, lambda: time.now, done.append)
    assert times == pytest.approx(np.array([[4, 1], [4, 2], [4, 3], [4, 4]]))
    assert done == [1, 2, 3, 4]
    turns = [tuple(time.log[i : i + 2]) for i in range(0, len(time.log), 2)]
    assert {tuple(sorted(turn)) for turn in turns} == {("fast", "slow")}
    assert turns[-2:] == [("slow", "fast"), ("fast", "slow")]  # neither always comes first


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return [build_bundle(tmp_path / name) for name in ("a.bundle", "b.bundle")]


def test_several_batches(bundles: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_bench(bundles, 10, 1, [1, 3, 1], as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["batches"] == [1, 3]
    rows = [(row["bundle"], row["batch"]) for row in result["bundles"]]
    assert rows == [(str(b), batch) for batch in (1, 3) for b in bundles]
    for row in result["bundles"]:
        if row["bundle"] == str(bundles[0]):
            assert row["times_faster_than_first"] == 1
        assert 0 < row["bundle_mib"] < row["resident_mib"]
        assert row["images_per_s"] > 0


def test_a_table_for_a_person(bundles: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_bench(bundles[:1], 10, 1, [2], as_json=False)
    said = capsys.readouterr().out
    head, row, _ = said.splitlines()
    assert len(head.split()) - 2 == len(row.split())  # "p50 ms" and "p99 ms" are two words each
    assert "a.bundle" in row
    assert "onnxruntime" in row
    assert "img/s" in said
    assert "MiB" in said


def test_a_graph_with_a_batch_of_its_own(bundles: list[Path]) -> None:
    model = onnx.load(bundles[0] / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, bundles[0] / "model.onnx")
    manifest = bundles[0] / "manifest.json"
    fields = json.loads(manifest.read_text())
    file = bundles[0] / "model.onnx"
    fields["files"]["model.onnx"] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    manifest.write_text(json.dumps(fields))
    seal(bundles[0])
    with pytest.raises(SettingsError, match="does not run 2 images at once"):
        run_bench(bundles, 10, 1, [2], as_json=True)


def test_a_bundle_that_holds_more_takes_more_memory(bundles: list[Path]) -> None:
    """A batch of 512 needs at least its own input and the float copy of it."""
    one, many = (resident_memory(bundles[0], 1, batch) for batch in (1, 512))
    floats = 512 * 32 * 32 * 3 * 4 / 2**20
    assert many["bundle_mib"] - one["bundle_mib"] > floats / 2


def test_a_bundle_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nowhere"):
        resident_memory(tmp_path / "nowhere", 1, 1)


def test_memory_is_measured_without_torch(bundles: list[Path]) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from metal_edge.cli.resident import measure\n"
        f"print(measure(Path({str(bundles[0])!r}), 1, 1)['resident_mib'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert 0 < float(done.stdout) < 1000
