"""Bad input: one line that names it and says what to do, an exit code, and nothing half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.bad_pictures import BAD, other_size, truncated_png
from support.broker import free_port
from support.cli import Call, Outcome, Trained, cli, listing, must, write_parts
from support.small_disk import small_disk
from support.tiny_bundle import build_bundle, write_image, write_model

from metal_edge.data import load_images
from metal_edge.training.run import plan_run

SHORT = ("--epochs", 1)  # where a picture is let through, the test must end all the same


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Eight good pictures of 48x40."""
    return write_parts(tmp_path / "parts", 8)


@pytest.fixture
def refuses(call: Call, tmp_path: Path) -> Callable[..., str]:
    """Calls a command that must fail with a code and change nothing; gives its error line."""

    def check(code: int, *arguments: object) -> str:
        before = listing(tmp_path)
        outcome = call(*arguments)
        assert outcome.code == code, outcome
        assert outcome.out == ""
        assert listing(tmp_path) == before
        return outcome.error

    return check


Refuses = Callable[..., str]


@pytest.mark.parametrize("bad", BAD, ids=lambda make: make.__name__)
def test_one_bad_picture_among_good_ones(
    parts: Path, tmp_path: Path, refuses: Refuses, bad: Callable[[Path], Path]
) -> None:
    path = bad(parts)
    code = 66 if path.is_symlink() else 65
    assert str(path) in refuses(code, "train", parts, "-o", tmp_path / "run", *SHORT)


def test_no_traceback_from_the_real_process(parts: Path, tmp_path: Path) -> None:
    path = truncated_png(parts)
    before = listing(tmp_path)
    outcome = cli("train", parts, "-o", tmp_path / "run", *SHORT)
    assert outcome.code == 65
    assert str(path) in outcome.error
    assert listing(tmp_path) == before


def test_an_old_run_survives_a_refused_fresh_start(
    own_run: Path, parts: Path, refuses: Refuses
) -> None:
    truncated_png(parts)
    refuses(65, "train", parts, "-o", own_run, "--fresh", *SHORT)


def test_mixed_sizes_on_request(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    odd = other_size(parts)
    error = refuses(65, "train", parts, "-o", tmp_path / "run", *SHORT)
    assert f"{odd} is 49x40" in error
    assert "--mixed-sizes resize" in error
    must("train", parts, "-o", tmp_path / "run", *SHORT, "--mixed-sizes", "resize")
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize("kind", ["L", "P", "RGBA"])
def test_pictures_with_one_meaning_are_converted_exactly(tmp_path: Path, kind: str) -> None:
    """8-bit grey, palette, and an alpha channel that hides nothing: a folder of each plans."""
    from metal_edge.models.metal import MetalConfig
    from metal_edge.training.config import TrainConfig

    parts = write_parts(tmp_path / "parts", 8)
    expected = []
    for path in sorted(parts.iterdir()):
        with PIL.Image.open(path) as picture:
            other = picture.convert(kind)
        other.save(path)
        expected.append(np.asarray(other.convert("RGB")))
    plan = plan_run(parts, MetalConfig(), TrainConfig())
    sides = (*plan.split.train, *plan.split.val, *plan.split.calibration)
    ordered = sorted(sides, key=lambda sample: sample.path)
    assert np.array_equal(load_images(ordered, 48, 40), np.stack(expected))


def test_a_folder_that_is_none(tmp_path: Path, refuses: Refuses) -> None:
    run = tmp_path / "run"
    assert str(tmp_path / "gone") in refuses(66, "train", tmp_path / "gone", "-o", run)
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path / 'file'} is not a folder" in refuses(
        65, "train", tmp_path / "file", "-o", run
    )
    (tmp_path / "empty").mkdir()
    error = refuses(65, "train", tmp_path / "empty", "-o", run)
    assert f"no pictures (.bmp .jpeg .jpg .png .tif .tiff .webp) in {tmp_path / 'empty'}" in error
    assert "train/good" in error


def test_too_few_or_all_the_same(tmp_path: Path, refuses: Refuses) -> None:
    few = write_parts(tmp_path / "few", 3)
    assert "3 distinct ones, 5 are needed" in refuses(65, "train", few, "-o", tmp_path / "run")
    copies = tmp_path / "copies"
    copies.mkdir()
    for number in range(9):
        shutil.copyfile(few / "000.png", copies / f"{number}.png")
    assert "hold 1 distinct" in refuses(65, "train", copies, "-o", tmp_path / "run")


def test_a_picture_of_one_colour(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    """A closed lens: also among the held-out ones, and before any training."""
    for number in range(8):
        flat = parts / f"{number:03d}.png"
        before = flat.read_bytes()
        write_image(flat, 17, (48, 40))
        error = refuses(65, "train", parts, "-o", tmp_path / "run", "--model", "metal", *SHORT)
        assert f"{flat} shows one flat colour" in error
        flat.write_bytes(before)


def test_a_network_that_cannot_be(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    def refused(*options: object) -> str:
        return refuses(78, "train", parts, "-o", tmp_path / "run", *options, *SHORT)

    metal = ("--model", "metal")
    blind = refused(*metal, "--mask", "zeroleak", "--shapes", "rows", "--radius", 4)
    assert "radius 4 with rows on a grid of 8 x 8" in blind
    assert "usable radius: at most 3" in blind
    assert "radius 1 needs mask zeroleak, not neg_inf" in refused(
        *metal, "--mask", "neg_inf", "--radius", 1
    )
    assert "'squares', 'rows' or 'cols'" in refused(*metal, "--shapes", "squares,circles")
    assert "at most once" in refused(*metal, "--shapes", "rows,rows")
    for option in (("--mask", "zero"), ("--shapes", "rows"), ("--blocks", 2), ("--radius", 0)):
        assert f"{option[0]} is not an option of --model l2bt" in refused(
            "--model", "l2bt", *option
        )


def test_absent_backbone_weights(
    parts: Path, tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package that carries them is not installed."""
    monkeypatch.setattr("metal_edge.models.backbone.PACKAGE", "a_package_that_is_not_there")
    error = refuses(69, "train", parts, "-o", tmp_path / "run", *SHORT)
    assert "ImageNet weights are not installed" in error


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """MVTec's layout with one masked defect of 48x40."""
    root = tmp_path / "mvtec"
    write_parts(root / "train" / "good", 8)
    write_parts(root / "test" / "good", 1, seed=1)
    write_parts(root / "test" / "dent", 1, seed=2)
    (root / "ground_truth" / "dent").mkdir(parents=True)
    write_image(root / "ground_truth" / "dent" / "000_mask.png", 0, (48, 40), spot=8)
    return root


def test_masks_that_do_not_match(mvtec: Path, tmp_path: Path, refuses: Refuses) -> None:
    masks = mvtec / "ground_truth" / "dent"
    write_image(masks / "007_mask.png", 0, (48, 40), spot=8)
    error = refuses(65, "train", mvtec, "-o", tmp_path / "run")
    assert f"mask {masks / '007_mask.png'} has no image" in error
    (masks / "007_mask.png").rename(masks / "000.png")
    assert "are both masks of" in refuses(65, "train", mvtec, "-o", tmp_path / "run")
    (masks / "000.png").unlink()
    bare = write_parts(mvtec / "test" / "crack", 1, seed=3) / "000.png"
    error = refuses(65, "train", mvtec, "-o", tmp_path / "run")
    assert f"defect image {bare} has no mask" in error
    assert str(mvtec / "ground_truth" / "crack" / "000_mask.png") in error


def test_a_mask_of_another_size(trained: Trained, tmp_path: Path, call: Call) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    mask = data / "ground_truth" / "dent" / "000_mask.png"
    write_image(mask, 0, (383, 384), spot=8)
    before = listing(tmp_path)
    outcome = call("evaluate", trained.run, "--data", data, "-o", tmp_path / "report")
    assert outcome.code == 65
    assert f"mask {mask} is 383x384, its image 384x384" in outcome.error
    assert listing(tmp_path) == before


def test_pictures_that_the_line_would_not_take(
    trained: Trained, mvtec: Path, refuses: Refuses
) -> None:
    """The daemon says `unknown` to another size, so no figure may rest on it."""
    error = refuses(65, "evaluate", trained.run, "--data", mvtec)
    assert f"{mvtec / 'test' / 'dent' / '000.png'} is 48x40" in error
    assert "trained on 384x384" in error
    error = refuses(65, "calibrate", trained.run, "--images", mvtec)
    assert "is 48x40, the model was trained on 384x384" in error


def test_a_place_that_cannot_be_written(
    trained: Trained, parts: Path, tmp_path: Path, refuses: Refuses
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    below = file / "below"
    for out in (file, below):
        assert str(out) in refuses(73, "train", parts, "-o", out)
        assert str(out) in refuses(73, "evaluate", trained.run, "-o", out)
        assert str(out) in refuses(73, "build-engine", trained.run, "-o", out)
    assert "not a folder" in refuses(73, "export", trained.run, "-o", file / "x.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in refuses(73, "export", trained.run, "-o", tmp_path / "folder.onnx")
    assert "not named like an ONNX" in refuses(78, "export", trained.run, "-o", file)
    proc = Path("/proc/metal-edge")
    assert str(proc) in refuses(73, "train", parts, "-o", proc)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission" in refuses(73, "train", parts, "-o", tmp_path / "locked" / "run")


def test_nothing_but_a_bundle_is_replaced(
    trained: Trained, own_run: Path, parts: Path, refuses: Refuses
) -> None:
    """The pictures, the run itself, a bundle with somebody's notes: all would be lost."""
    for place in (parts, own_run, own_run.parent):
        assert "is not a bundle" in refuses(73, "build-engine", trained.run, "-o", place)
    noted = build_bundle(parts.parent / "noted")
    (noted / "notes.txt").write_text("the good one")
    assert "notes.txt" in refuses(73, "build-engine", trained.run, "-o", noted)
    assert "is not a run" in refuses(73, "train", parts, "-o", parts)
    assert "is not a run" in refuses(73, "train", parts, "-o", parts, "--fresh")


def test_a_run_that_is_none(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    for missing in (parts, tmp_path / "gone"):
        for command in (
            ("calibrate",),
            ("export", "-o", tmp_path / "x.onnx"),
            ("build-engine", "-o", tmp_path / "b"),
        ):
            assert f"{missing} is not a run" in refuses(66, command[0], missing, *command[1:])
        assert f"{missing} is not a" in refuses(66, "evaluate", missing)


def test_a_foreign_onnx_file_in_place_of_a_run_or_bundle(tmp_path: Path, refuses: Refuses) -> None:
    file = tmp_path / "resnet.onnx"
    write_model(file)
    old = build_bundle(tmp_path / "old")
    error = refuses(66, "build-engine", file, "-o", old)
    assert f"{file} is a file, not a run: name the folder that `metal-edge train` made" in error
    for command in ("bench", "inspect", "evaluate"):
        error = refuses(66, command, file)
        assert f"{file} is a file, not a bundle: name the folder" in error


def test_an_unfinished_run(own_run: Path, tmp_path: Path, refuses: Refuses) -> None:
    (own_run / "checkpoint.safetensors").rename(own_run / "state.safetensors")
    for command in (
        ("evaluate",),
        ("calibrate",),
        ("export", "-o", tmp_path / "x.onnx"),
        ("build-engine", "-o", tmp_path / "b"),
    ):
        error = refuses(66, command[0], own_run, *command[1:])
        assert f"training of {own_run} is not finished" in error
        assert "metal-edge train" in error


def cut(path: Path) -> Path:
    """Halves a file that is a link to the run that all tests share."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("name", ["run.json", "checkpoint.safetensors", "thresholds.json"])
def test_a_damaged_run(own_run: Path, tmp_path: Path, refuses: Refuses, name: str) -> None:
    damaged = cut(own_run / name)
    assert str(damaged) in refuses(65, "evaluate", own_run, "-o", tmp_path / "report")


def test_a_damaged_state(trained: Trained, own_run: Path, refuses: Refuses) -> None:
    (own_run / "checkpoint.safetensors").rename(own_run / "state.safetensors")
    damaged = cut(own_run / "state.safetensors")
    command = ["train", trained.data, "-o", own_run, *trained.train[4:]]
    assert str(damaged) in refuses(65, *command)


def test_pictures_that_changed_since_training(
    trained: Trained, own_run: Path, tmp_path: Path, refuses: Refuses
) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    held_out = next((data / "train" / "good").iterdir())
    write_image(held_out, 7)
    (own_run / "run.json").unlink()
    text = (trained.run / "run.json").read_text()
    (own_run / "run.json").write_text(text.replace(str(trained.data), str(data)))
    error = refuses(65, "build-engine", own_run, "-o", tmp_path / "b")
    assert f"recorded images changed, first {held_out}" in error


@pytest.mark.parametrize(
    "name", ["model.onnx", "thresholds.json", "golden/000.png", "manifest.json"]
)
@pytest.mark.parametrize("command", ["bench", "evaluate", "run"])
def test_one_changed_byte_in_a_bundle(
    tmp_path: Path, trained: Trained, refuses: Refuses, name: str, command: str
) -> None:
    bundle = build_bundle(tmp_path / "bundle")
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    settings = tmp_path / "line.toml"
    settings.write_text(f'bundle = "bundle"\n[camera]\nkind = "folder"\nuri = "{tmp_path}"\n')
    arguments = {
        "bench": (bundle,),
        "evaluate": (bundle, "--data", trained.data),
        "run": ("--config", settings),
    }
    assert str(bundle / name) in refuses(65, command, *arguments[command])


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_settings(tmp_path: Path, call: Call, command: str) -> None:
    config = tmp_path / "line.toml"

    def said(code: int, text: str | None) -> str:
        if text is not None:
            config.write_text(text)
        outcome = call(command, "--config", config)
        if command == "doctor":
            assert outcome.code == 1
            return next(row for row in outcome.out.splitlines() if row.startswith("FAIL"))
        assert outcome.code == code
        return outcome.error

    camera = '[camera]\nkind = "folder"\n'
    assert f"{config} not found" in said(66, None)
    assert str(config) in said(78, "bundle = ")
    typo = said(78, f'bundle = "b"\n{camera}timout_s = 1\n')
    assert "camera.timout_s: unknown key" in typo
    assert "did you mean 'timeout_s'" in typo
    assert "mqtt.port" in said(78, f'bundle = "b"\n{camera}[mqtt]\nport = 70000\n')
    assert "camera: Field required" in said(78, 'bundle = "b"\n')


def test_no_broker(tmp_path: Path) -> None:
    build_bundle(tmp_path / "bundle")
    write_image(tmp_path / "a.png", 51)
    port = free_port()
    config = tmp_path / "line.toml"
    config.write_text(
        f'bundle = "bundle"\n[camera]\nkind = "folder"\nuri = "."\n[mqtt]\nport = {port}\n'
    )
    outcome = cli("run", "--config", config)
    assert outcome.code == 69
    assert f"127.0.0.1:{port}" in outcome.error


def test_options_that_make_no_sense(parts: Path, tmp_path: Path, refuses: Refuses) -> None:
    train = ("train", parts, "-o", tmp_path / "run", *SHORT)
    assert "--epochs" in refuses(64, *train, "--epochs", 0)
    assert "'products', 'textures', 'fine'" in refuses(64, *train, "--preset", "x")
    assert "--nope" in refuses(64, *train, "--nope")
    assert "DATASET" in refuses(64, "train", "-o", tmp_path / "run")
    assert "No such command 'tarin'" in refuses(64, "tarin")
    assert "'fast', 'paper'" in refuses(64, *train, "--recipe", "slow")
    assert "--crop" in refuses(78, *train, "--crop", "1,2,3")
    assert "does not lie inside the 48x40 image" in refuses(65, *train, "--crop", "40,0,20,20")


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "nan"])
def test_an_impossible_rate(trained: Trained, refuses: Refuses, rate: str) -> None:
    error = refuses(78, "calibrate", trained.run, "--false-reject-rate", rate)
    assert "between 0 and 1" in error


def test_without_the_training_packages(parts: Path, tmp_path: Path) -> None:
    """As on a line's computer, which has the daemon's packages only."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    outcome = cli(
        *("train", parts, "-o", tmp_path / "run", *SHORT), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert outcome.code == 69
    assert "torch" in outcome.error
    assert "metal-edge[train]" in outcome.error


def test_names_that_are_not_utf8(parts: Path, tmp_path: Path, call: Call) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/teile-\xff"))
    parts.rename(strange)
    outcome = call("train", strange, "-o", tmp_path / "run", "--epochs", 1)
    assert outcome.code == 65
    assert "UTF-8" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as place:
        yield place


def test_a_full_disk(trained: Trained, parts: Path, full_disk: Path, call: Call) -> None:
    def fails(*command: object, out: Path) -> Outcome:
        outcome = call(*command, "-o", out)
        assert outcome.code == 73, outcome
        assert str(out) in outcome.error
        assert "free space" in outcome.error
        return outcome

    fails("export", trained.run, out=full_disk / "x.onnx")
    fails("build-engine", trained.run, "--precision", "fp32", out=full_disk / "bundle")
    fails("train", parts, "--epochs", 1, out=full_disk / "run")
    left = {"run", "run/run.json", "run/history.json"}  # to go on when there is space
    assert listing(full_disk).keys() == left
