"""Catalogue, data sets, costs, curves and estimates of the results page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.metrics import roc_auc_score
from torch import nn

from metal_edge.errors import DataError, MissingInputError, OutputError, SettingsError
from metal_edge.models.metal import Metal, MetalConfig
from tools.results import pictures
from tools.results.campaign import duration
from tools.results.catalogue import Catalogue, published
from tools.results.measure import WARM_UP, interleaved_ms, multiply_accumulates
from tools.results.patchcore import PatchCoreConfig
from tools.results.run import line_size
from tools.results.sets import choose, digest, discover, load_checked

HEAD = "[recipes.quick]\nepochs = 3\n"


def catalogue(folder: Path, text: str) -> Catalogue:
    path = folder / "models.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return Catalogue(path)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), (value, value, value)).save(path)


def data_set(root: Path, train: int = 10, good: int = 1, bad: int = 1) -> Path:
    for folder, count in (("train/good", train), ("test/good", good), ("test/bad", bad)):
        for index in range(count):
            picture(root / folder / f"{index}.png", 10 * index)
    return root


def test_every_committed_model_can_be_read() -> None:
    known = Catalogue()
    variants = [known.variant(name) for name in known.choose(None)]
    assert {"metal-paper", "metal-features", "patchcore"} <= {
        v.name for v in variants if v.network is not None
    }


def test_a_variant_is_its_recipe_with_changes(tmp_path: Path) -> None:
    text = (
        '[models.a]\ntitle = "A"\nrecipe = "quick"\ntraining = { batch_size = 7 }\n'
        'network = { kind = "metal", blocks = 2 }\n'
    )
    variant = catalogue(tmp_path, text).variant("a", minutes=0.5)
    training = variant.training
    assert (training.epochs, training.batch_size, training.max_minutes) == (3, 7, 0.5)
    assert isinstance(variant.network, MetalConfig)
    assert variant.network.blocks == 2


def test_a_network_of_another_version_is_left_out_but_a_slip_is_not(tmp_path: Path) -> None:
    head = '[models.a]\ntitle = "A"\nnetwork = '
    assert catalogue(tmp_path, head + '{ kind = "of-tomorrow" }').variant("a").network is None
    mask = '{ kind = "metal", mask = "of-tomorrow" }'
    assert catalogue(tmp_path, head + mask).variant("a").network is None
    with pytest.raises(SettingsError, match="blcoks"):
        catalogue(tmp_path, head + '{ kind = "metal", blcoks = 2 }').variant("a")
    with pytest.raises(SettingsError, match="coreset"):
        catalogue(tmp_path, head + '{ kind = "patchcore", coreset = 2.0 }').variant("a")


def test_unknown_names_and_fields_are_named(tmp_path: Path) -> None:
    text = '[models.a]\ntitle = "A"\nnetwork = { kind = "metal" }\n'
    with pytest.raises(SettingsError, match=r"'b'.*choose among a"):
        catalogue(tmp_path, text).choose(["b"])
    with pytest.raises(SettingsError, match="no recipe 'slow'"):
        catalogue(tmp_path, text + 'recipe = "slow"\n').variant("a")
    with pytest.raises(SettingsError, match="epcohs"):
        catalogue(tmp_path, text + "training = { epcohs = 3 }\n").variant("a")
    with pytest.raises(SettingsError, match="cannot be used"):
        catalogue(tmp_path, text + "colour = 3\n")


def test_table_3_was_copied_rightly() -> None:
    """Its last line, the means, follows from the others (Rows + Cols is .8133, printed .814)."""
    means = np.mean(list(published().ablation.values()), axis=0)
    printed = [0.773, 0.800, 0.844, 0.843, 0.814, 0.815]
    np.testing.assert_allclose(means, printed, atol=0.0011)
    assert len(published().ablation) == 15


def test_sets_are_found_below_a_folder_or_are_it(tmp_path: Path) -> None:
    for name in ("b", "a"):
        data_set(tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert list(discover(tmp_path)) == ["a", "b"]
    assert list(discover(tmp_path / "a")) == ["a"]
    assert choose(["a", "b"], ["b"]) == ["b"]
    with pytest.raises(SettingsError, match=r"'c'.*a, b"):
        choose(["a", "b"], ["c"])


def test_folders_that_cannot_be_measured_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        discover(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no data set"):
        discover(tmp_path)
    with pytest.raises(DataError, match="9 good training images, 10"):
        load_checked(data_set(tmp_path / "few", train=9))
    with pytest.raises(DataError, match="no anomalous"):
        load_checked(data_set(tmp_path / "fine", bad=0))
    with pytest.raises(DataError, match="no good"):
        load_checked(data_set(tmp_path / "sad", good=0))


def test_the_digest_follows_contents_and_labels_not_the_place(tmp_path: Path) -> None:
    first = digest(load_checked(data_set(tmp_path / "one")))
    assert digest(load_checked(data_set(tmp_path / "two"))) == first
    picture(tmp_path / "two" / "test" / "bad" / "0.png", 99)
    assert digest(load_checked(tmp_path / "two")) != first
    (tmp_path / "one" / "test" / "bad").rename(tmp_path / "one" / "test" / "worse")
    assert digest(load_checked(tmp_path / "one")) != first


@pytest.mark.parametrize("text", ["1,2", "1,2,x", "0,1,1"])
def test_a_line_of_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="line-images"):
        line_size(text)


def test_macs_are_those_of_a_hand_count() -> None:
    """Every linear layer once per token, both attention products, and the smoothing."""
    config = MetalConfig(image_size=32, patch_size=8, embedding=16, heads=2, shapes=("squares",))
    model = Metal(config)
    tokens, width, pixels = 16, 16, 3 * 8 * 8
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 2 * tokens * tokens * width
    smoothing = 2 * 32 * 32 * 32
    assert pixels * config.square_hidden < linear  # the count is not empty
    assert multiply_accumulates(model) == tokens * linear + attention + smoothing


def constant_model(path: Path) -> Path:
    """The smallest graph that a runner accepts: uint8 [1, 8, 8, 3] -> its red channel."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["b", 8, 8, 3])
    outputs = [
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["b", 8, 8]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b"]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["float", "zero"], ["anomaly_map"], axis=3),
        helper.make_node("ReduceMax", ["anomaly_map", "axes"], ["score"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
    ]
    graph = helper.make_graph(nodes, "red", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_models_take_turns_and_the_median_counts(tmp_path: Path) -> None:
    """A clock that jumps once: only the model then running is late, and only in one round."""
    path = constant_model(tmp_path / "m.onnx")
    ticks = 0

    def seconds() -> float:
        nonlocal ticks
        ticks += 1
        return ticks * 0.002 + (10.0 if ticks > 4 * WARM_UP + 5 else 0.0)

    def blank(side: int) -> NDArray[np.uint8]:
        return np.zeros((1, side, side, 3), np.uint8)

    rounds: list[tuple[int, int]] = []
    took = interleaved_ms(
        {"a": path, "b": path},
        blank,
        seconds,
        rounds=3,
        on_round=lambda done, total: rounds.append((done, total)),
    )
    assert took == pytest.approx({"a": 2.0, "b": 2.0})
    assert rounds[-1] == (WARM_UP + 3, WARM_UP + 3)
    assert ticks == 4 * (WARM_UP + 3)  # two readings for each of two models, every round


def test_the_image_curve_has_the_area_of_the_auroc() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.4
    values = np.round(generator.normal(size=60) + truth, 1)  # ties
    curve = pictures.image_roc([(float(v), bool(t)) for v, t in zip(values, truth, strict=True)])
    assert curve[0].tolist() == [0.0, 0.0]
    assert curve[-1].tolist() == [1.0, 1.0]
    area = np.trapezoid(curve[:, 1], curve[:, 0])
    assert area == pytest.approx(roc_auc_score(truth, values))


def test_a_gallery_is_made_small_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randint(0, 256, (900, 1400, 3), dtype=torch.uint8).numpy()
    PIL.Image.fromarray(noise).save(tmp_path / "big.png")
    pictures.shrink_gallery(tmp_path / "big.png", tmp_path / "small.jpg")
    assert (tmp_path / "small.jpg").stat().st_size <= pictures.MAX_GALLERY_BYTES
    with PIL.Image.open(tmp_path / "small.jpg") as opened:
        assert opened.size == (1000, 643)
    monkeypatch.setattr(pictures, "MAX_GALLERY_BYTES", 100)
    with pytest.raises(OutputError, match=r"big\.png"):
        pictures.shrink_gallery(tmp_path / "big.png", tmp_path / "none.jpg")
    assert not (tmp_path / "none.jpg").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.2, "40 s"), (300.0, "5 min"), (7500.0, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_patchcores_map_fits_its_grid() -> None:
    assert PatchCoreConfig().map_size == PatchCoreConfig().features.map_size
