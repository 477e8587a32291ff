"""`python -m tools.results` and `tools.ablation` on tiny data sets: whole, resumable, stoppable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from support.broker import wait_until

from metal_edge.errors import DataError
from metal_edge.imaging import write_png
from metal_edge.training.run import RECORD, STATE
from tools import ablation
from tools.results import __main__ as command
from tools.results.catalogue import Catalogue
from tools.results.cells import MODEL, REPORT, RESULT, RUN, Cell, CellResult, run_cell
from tools.results.fit import Advance, Hooks, fit
from tools.results.page import NOT_RUN
from tools.results.sets import digest, load_checked

ROOT = Path(__file__).parents[2]
MODELS = """
[recipes.quick]
epochs = {epochs}
min_epochs = {epochs}
batch_size = 4
save_every_s = 0.0
precision = "fp32"

[models.small]
title = "a small MeTAL"
recipe = "quick"
[models.small.network]
kind = "metal"
image_size = 32
patch_size = 8
embedding = 16
heads = 2
blur_sigma = 2.0

[models.patchcore]
title = "a small PatchCore"
network = {{ kind = "patchcore", image_size = 64, grid = 4, blur_sigma = 2.0 }}

[models.tomorrows]
title = "a network that is not written yet"
network = {{ kind = "of-tomorrow" }}
"""


def write_set(root: Path, *, train: int = 12, test: int = 3) -> Path:
    """Stripes with noise; defects are bright boxes, with masks."""
    noise = np.random.default_rng(5)
    for folder, count in (("train/good", train), ("test/good", test), ("test/box", test)):
        for index in range(count):
            image = np.tile(np.linspace(40, 160, 48), (48, 1))[..., None].repeat(3, 2)
            image = (image + noise.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
            if folder.endswith("box"):
                mask = np.zeros((48, 48, 3), np.uint8)
                mask[8:24, 4:20] = 255
                image[8:24, 4:20] = 250
                write_png(root / "ground_truth" / "box" / f"{index}_mask.png", mask)
            write_png(root / folder / f"{index}.png", image)
    return root


def write_models(folder: Path, epochs: int) -> Path:
    path = folder / "models.toml"
    path.write_text(MODELS.format(epochs=epochs), encoding="utf-8")
    return path


@contextmanager
def no_progress(_title: str) -> Iterator[Advance]:
    yield lambda _done, _total, _note: None


def hooks(interrupted: Callable[[], bool] = lambda: False) -> Hooks:
    return Hooks(time.monotonic, lambda: datetime(2026, 1, 2, tzinfo=UTC), interrupted, no_progress)


def small_cell(root: Path, folder: Path, models: Path, *, threads: int = 1) -> Cell:
    dataset = load_checked(root)
    variant = Catalogue(models).variant("small")
    return Cell("knobs", dataset, digest(dataset), variant, 0, threads, folder, keep=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shown(docs: Path) -> set[tuple[str, str]]:
    """(set, model) of the page's cells."""
    cells = json.loads((docs / "results" / "results.json").read_bytes())["cells"]
    return {(cell["dataset"], cell["model"]) for cell in cells}


def test_a_second_run_keeps_what_is_there_and_names_what_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the results page needs the extra `results`")
    write_set(tmp_path / "data" / "knobs")
    out, docs = tmp_path / "out", tmp_path / "docs"
    arguments = [
        *("--data", str(tmp_path / "data"), "--seeds", "1", "--threads", "1"),
        *("--config", str(write_models(tmp_path, 2)), "--line-images", "12,2,1"),
        *("--out", str(out), "--docs", str(docs)),
    ]
    assert command.main([*arguments, "--models", "small,tomorrows", "--sets", "knobs"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "tomorrows: this version has no such network" in said
    path = out / "knobs" / "small" / "seed0" / RESULT
    result = CellResult.model_validate_json(path.read_bytes())
    assert result.epochs == 2
    assert result.figures["image_auroc"] is not None
    assert len(result.scores) == 6
    assert {p.name for p in path.parent.iterdir()} == {RESULT, MODEL, REPORT}
    assert {p.name for p in (docs / "results").iterdir()} == {"results.json", "roc-knobs.svg"}

    (docs / "results" / "roc-gone.svg").write_text("of a set that is no more", encoding="utf-8")
    trained = path.stat().st_mtime_ns
    write_set(tmp_path / "data" / "dark")
    for lens_covered in (tmp_path / "data" / "dark" / "train" / "good").iterdir():
        write_png(lens_covered, np.full((48, 48, 3), 7, np.uint8))
    assert command.main([*arguments, "--models", "patchcore", "--sets", "dark,line"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "failed: dark, patchcore, seed 0" in said
    assert not (out / "dark" / "patchcore" / "seed0" / RESULT).exists()
    assert command.main([*arguments, "--models", "small", "--sets", "knobs"]) == 0
    assert "1 of 1 cells are there already" in " ".join(capsys.readouterr().err.split())
    assert path.stat().st_mtime_ns == trained
    page = (docs / "results.md").read_text(encoding="utf-8")
    # The head explains it; two models on the line and on knobs, all three on dark.
    assert page.count(NOT_RUN) == 1 + 2 + 2 + 3
    names = {p.name for p in (docs / "results").iterdir()}
    assert names == {"results.json", "roc-knobs.svg", "roc-line.svg", "line-patchcore.jpg"}
    contents = json.loads((docs / "results" / "results.json").read_bytes())
    assert {name: set(ms) for name, ms in contents["milliseconds"].items()} == {
        "knobs": {"small"},
        "line": {"patchcore"},
    }

    # Another machine has the page, but not the cells behind it.
    shutil.rmtree(out / "knobs")
    again = [*arguments, "--models", "patchcore", "--sets", "line"]
    assert command.main(again) == 0
    assert shown(docs) == {("knobs", "small"), ("line", "patchcore")}
    write_models(tmp_path, 3)  # what is shown was trained for two epochs
    assert command.main(again) == 0
    assert shown(docs) == {("line", "patchcore")}


def test_ctrl_c_leaves_no_half_cell_and_training_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    root, models = write_set(tmp_path / "knobs"), write_models(tmp_path, 3)
    cell = small_cell(root, tmp_path / "broken", models)
    state = cell.folder / RUN / STATE
    asked = 0

    def interrupted() -> bool:
        """Yes in the second epoch of three batches; the state is there after the first batch."""
        nonlocal asked
        asked += state.exists()
        return asked > 3

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, hooks(interrupted))
    assert cell.finished() is None
    assert {p.name for p in cell.folder.iterdir()} == {RUN}
    assert state.is_file()
    network, training = cell.variant.network, cell.variant.training
    assert network is not None
    resumed = fit(root, network, training, cell.folder / RUN, hooks())
    unbroken = fit(root, network, training, tmp_path / "whole" / RUN, hooks())
    expected = unbroken.model.state_dict()
    assert all(torch.equal(value, expected[k]) for k, value in resumed.model.state_dict().items())
    assert resumed.epochs == unbroken.epochs == 3


def test_a_cell_is_made_again_when_images_options_or_threads_change(tmp_path: Path) -> None:
    root, folder = write_set(tmp_path / "knobs"), tmp_path / "cell"
    state = folder / RUN / STATE
    with pytest.raises(KeyboardInterrupt):
        run_cell(small_cell(root, folder, write_models(tmp_path, 9)), hooks(state.exists))
    assert (folder / RUN / RECORD).is_file()  # of another configuration, which must not be mixed in
    cell = small_cell(root, folder, write_models(tmp_path, 1))
    assert run_cell(cell, hooks()).epochs == 1
    assert not state.exists()
    assert cell.finished() is not None
    assert small_cell(root, folder, tmp_path / "models.toml", threads=2).finished() is None
    assert small_cell(root, folder, write_models(tmp_path, 2)).finished() is None
    (root / "test" / "good" / "0.png").write_bytes((root / "test/good/1.png").read_bytes())
    assert small_cell(root, folder, write_models(tmp_path, 1)).finished() is None
    (folder / RESULT).write_text("{", encoding="utf-8")
    assert cell.finished() is None


def test_a_real_ctrl_c_ends_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the results page needs the extra `results`")
    write_set(tmp_path / "data" / "knobs")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tools.results", "--data", str(tmp_path / "data")),
            *("--sets", "knobs", "--models", "small", "--threads", "1"),
            *("--config", str(write_models(tmp_path, 100_000))),
            *("--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        state = tmp_path / "out" / "knobs" / "small" / "seed0" / RUN / STATE
        wait_until(state.exists, "a saved state", 60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].endswith("stopped; the same command goes on from here")
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob(RESULT))
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "docs").exists()


def test_the_ablation_writes_table_3_and_keeps_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the six columns: the others differ in their shapes only."""
    monkeypatch.setattr(ablation, "COLUMNS", ablation.COLUMNS[1:2])
    root = write_set(tmp_path / "gears")
    arguments = [str(root), "--seeds", "1", "--minutes", "0.01", "--threads", "1"]
    arguments += ["--out", str(tmp_path / "out")]
    assert ablation.main(arguments) == 0
    text = (tmp_path / "out" / "gears-zero-b1-fast.md").read_text(encoding="utf-8")
    assert "| Class | figure | Only Squares (Masked) |" in text
    assert text.strip() in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob(RESULT)}
    assert len(before) == 1
    assert ablation.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob(RESULT)} == before
    values = json.loads((tmp_path / "out" / "gears-zero-b1-fast.json").read_bytes())
    assert 0 <= values["rows"][0]["values"]["Only Squares (Masked)"][0] <= 1


def test_clear_errors_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main([str(tmp_path / "nowhere")]) == 66
    assert "nowhere does not exist" in capsys.readouterr().err
    write_set(tmp_path / "few", train=4)
    assert ablation.main([str(tmp_path / "few")]) == DataError.exit_code
    assert "4 good training images, 10 are needed" in capsys.readouterr().err
    assert ablation.main([str(tmp_path), "--mask", "black"]) == 64
    assert "--mask" in capsys.readouterr().err
