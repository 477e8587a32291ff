"""L2BT: the published students and map, on both kinds of backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import uniform_filter

from metal_edge.errors import SettingsError
from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.backbone import LEVELS, EfficientNetLite0
from metal_edge.models.checkpoint import load_checkpoint, save_checkpoint
from metal_edge.models.l2bt import L2BT, L2BTConfig
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.models.smoothing import box_matrix
from metal_edge.models.tokens import student
from metal_edge.quantize.layers import linear_layers

VIT = "timm:test_vit"  # timm's own tiny network for tests: 6 blocks of width 64, patch 16


def small(**changes: object) -> L2BTConfig:
    return L2BTConfig.model_validate({"image_size": 64, "grid": 4, "hidden": 32} | changes)


def small_vit(**changes: object) -> L2BTConfig:
    return L2BTConfig.for_vit(VIT, **{"image_size": 64, "levels": ("2", "5")} | changes)


def test_the_published_students_have_3_543_552_parameters() -> None:
    students = [student(768, 768, 768) for _ in range(2)]
    assert sum(p.numel() for s in students for p in s.parameters()) == 3_543_552


def test_the_published_network_on_its_vit() -> None:
    config = L2BTConfig.for_vit("timm:vit_base_patch14_reg4_dinov2", image_size=1036)
    assert (config.grid, config.blocks(), config.hidden) == (74, (7, 11), 0)
    with torch.device("meta"):
        students = L2BT(config.model_copy(update={"image_size": 28, "grid": 2}))
    trained = [p for p in students.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 3_543_552


@pytest.fixture(scope="module", params=["pair", "chain", "vit", "vit-chain"])
def model(request: pytest.FixtureRequest) -> L2BT:
    """Two depths and more, on both kinds of backbone; tests do not change it."""
    config = {
        "pair": lambda: small(levels=("stride8", "stride16")),
        "chain": small,
        "vit": small_vit,
        "vit-chain": lambda: small_vit(levels=("0", "2", "3", "5")),
    }[request.param]
    torch.manual_seed(0)
    return L2BT(config()).eval()


def perfect(model: L2BT, target: torch.Tensor) -> torch.Tensor:
    """The reconstruction in which each student is right."""
    return torch.cat([target[..., model.depths[wanted]] for _, wanted in model.links], dim=-1)


def widths(model: L2BT) -> list[int]:
    return [part.stop - part.start for part in model.depths]


def random_target(model: L2BT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, sum(widths(model)), generator=generator, dtype=torch.float64)


def test_students_link_each_depth_with_its_neighbours(model: L2BT) -> None:
    depths = range(len(model.config.levels))
    assert sorted(model.links) == [(a, b) for a in depths for b in depths if abs(a - b) == 1]


def test_each_student_sees_only_its_own_depth_and_token(model: L2BT) -> None:
    target = random_target(model).float()
    sizes = [widths(model)[wanted] for _, wanted in model.links]
    for depth, part in enumerate(model.depths):
        changed = target.clone()
        changed[0, 3, part] += 5
        with torch.no_grad():
            moved = (model(changed) != model(target))[0]
        assert not moved[torch.arange(16) != 3].any()
        fed = [bool(seen.any()) for seen in moved[3].split(sizes)]
        assert fed == [source == depth for source, _ in model.links]


def test_a_depth_of_the_chain_is_its_levels_side_by_side() -> None:
    """Finer levels averaged to the token grid, coarser ones interpolated."""
    torch.manual_seed(0)
    model = L2BT(small()).eval()
    images = torch.from_numpy(probe_images(64))
    every = EfficientNetLite0(tuple(LEVELS)).eval()
    every.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        maps = every(images.permute(0, 3, 1, 2) / 127.5 - 1)
        tokens = model.precompute(images).mT.unflatten(2, (4, 4))
    assert [level.shape[-1] for level in maps] == [16, 8, 4, 4, 2]
    wanted = [
        [maps[0].unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean(dim=(3, 5)),
         maps[1].unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))],
        [maps[2], maps[3]],
        [torch.nn.functional.interpolate(maps[4], scale_factor=2, mode="bilinear")],
    ]  # fmt: skip
    assert model.config.levels == ("stride4+stride8", "stride16-early+stride16", "stride32")
    for part, levels in zip(model.depths, wanted, strict=True):
        torch.testing.assert_close(tokens[:, part], torch.cat(levels, dim=1))


def test_the_map_is_the_product_of_the_distances(model: L2BT) -> None:
    """Of two students as published; of more, its power that has the unit of two."""
    target = random_target(model)
    random = np.random.default_rng(0)
    guesses = [random.normal(size=(16, widths(model)[wanted])) for _, wanted in model.links]
    product = np.ones(16)
    for guess, (_, index) in zip(guesses, model.links, strict=True):
        truth = target[0, :, model.depths[index]].numpy()
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (guess, truth))
        product *= np.linalg.norm(a - b, axis=1)
    got = model.error_map(torch.from_numpy(np.concatenate(guesses, axis=1)[None]), target)
    expected = product ** (1 / (len(model.config.levels) - 1))
    np.testing.assert_allclose(got.numpy().reshape(16), expected, rtol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), a=st.floats(0.1, 50), b=st.floats(0.1, 50))
def test_loss_and_map_do_not_depend_on_the_features_length(
    model: L2BT, seed: int, a: float, b: float
) -> None:
    target = random_target(model, seed)
    right = perfect(model, target)
    guess = right + perfect(model, random_target(model, seed + 1))
    for measure in (model.loss, model.error_map):
        torch.testing.assert_close(measure(a * guess, b * target), measure(guess, target))
    assert model.loss(a * right, target) == pytest.approx(0, abs=1e-9)
    assert model.loss(-a * right, target) == pytest.approx(2 * len(model.links))
    opposite = model.error_map(-a * right, target)  # distances of 2
    torch.testing.assert_close(opposite, torch.full_like(opposite, 4))


def test_the_filters_are_box_filters_one_after_the_other() -> None:
    image = np.random.default_rng(1).random((40, 40))
    expected = image
    for side in (5, 5, 7):
        expected = uniform_filter(expected, side, mode="reflect")
    matrix = box_matrix(40, (5, 5, 7)).double().numpy()
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-6)


def test_the_score_is_the_mean_of_the_highest_thousandth() -> None:
    model = L2BT(small()).eval()
    images = torch.from_numpy(probe_images(64))
    with torch.inference_mode():
        maps, scores = AnomalyScorer(model)(images)
    expected = maps.flatten(1).sort(dim=1, descending=True).values[:, :4].mean(dim=1)  # 4 of 4096
    torch.testing.assert_close(scores, expected)


def test_channels_are_standardised_only_where_asked() -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    for standardise in (True, False):
        model = L2BT(small(standardise=standardise)).eval()
        model.load_pretrained()
        stored = model.precompute(images)
        model.fit_inputs(stored)
        target = model.target(stored)
        if standardise:
            assert target.mean(dim=(0, 1)).abs().max() < 1e-3
            torch.testing.assert_close(
                target.std(dim=(0, 1)), torch.ones(target.shape[-1]), atol=0.02, rtol=0
            )
        else:
            torch.testing.assert_close(target, stored)


def test_training_moves_the_students_and_not_the_teacher() -> None:
    torch.manual_seed(0)
    model = L2BT(small_vit()).train()
    assert not model.backbone.training
    teacher = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    target = model.target(model.precompute(torch.from_numpy(probe_images(64))))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(model(target), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(v, teacher[k]) for k, v in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"levels": ("stride8",)},
        {"levels": ("stride8", "stride8")},
        {"levels": ("stride16", "stride8")},
        {"levels": ("stride8", "stride5")},
        {"levels": ("stride8+stride16", "stride16")},
        {"levels": ("stride4+stride16", "stride8")},
        {"levels": ("stride8+", "stride16")},
        {"image_size": 72},
        {"boxes": (4,)},
        {"backbone": "resnet18"},
        {"backbone_weights": "own.safetensors"},
        {"backbone": VIT, "levels": ("stride8", "stride16")},
        {"backbone": VIT, "levels": ("5", "2")},
        {"backbone": VIT, "levels": ("2", "5", "4")},
        {"backbone": VIT, "levels": ("1+2", "5")},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        small(**change)


def test_blocks_and_sizes_that_the_vit_has_not() -> None:
    with pytest.raises(SettingsError, match=r"no block 7, its blocks are 0 to 5.*--levels"):
        small_vit(levels=("2", "7"))
    with pytest.raises(SettingsError, match=r"100 is not a multiple .* 16 px.*--image-size 96"):
        small_vit(image_size=100)


@pytest.mark.parametrize("config", [small(), small_vit()], ids=["lite0", "vit"])
def test_checkpoint_and_exported_graph_agree_with_the_network(
    config: L2BTConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = L2BT(config).eval()
    model.fit_inputs(model.precompute(torch.from_numpy(probe_images(64))))
    save_checkpoint(tmp_path / "c", model, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    exported = onnx_from_model(loaded)
    save_model(exported, tmp_path / "m.onnx")
    assert check_parity(model, tmp_path / "m.onnx", probe_images(64)) < 1e-4
    # All linear layers are found for INT8: three a student, four in each of a ViT's blocks.
    assert len(linear_layers(exported)) == (3 * 4 if config.standardise else 3 * 2 + 4 * 6)
