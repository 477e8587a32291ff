"""Vision transformers as token sources: named ones out of timm, and a small one of our own.

timm (extra `vit`) is imported inside the functions that need it: whoever names no timm backbone
needs no timm. Its networks are built without weights; `load_weights` fills them from timm's hub or
from a safetensors file brought by hand. A checkpoint of ours holds the weights afterwards.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metal_edge.errors import DataError, MissingInputError, SettingsError, UnavailableError
from metal_edge.models.attention import EncoderBlock, MaskRule

PREFIX = "timm:"
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def timm_name(backbone: str) -> str | None:
    """`timm:NAME` -> NAME; anything else -> None."""
    return backbone.removeprefix(PREFIX) if backbone.startswith(PREFIX) else None


def _bare(name: str) -> str:
    """timm's MODEL.TAG -> MODEL."""
    return name.partition(".")[0]


@cache
def import_timm() -> Any:
    """The timm package.

    Raises:
        UnavailableError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise UnavailableError(
            "backbones of the kind timm:NAME need the package timm, which is not installed",
            "pip install 'metal-edge[train,vit]', or leave --backbone out",
        )
    _declare_torchvision_operators()
    import timm  # noqa: PLC0415  # an option, and a second of start-up

    return timm


@cache
def _declare_torchvision_operators() -> torch.library.Library | None:
    """Lets timm import torchvision where torchvision's operators cannot be loaded.

    The package index's torchvision is built for CUDA. Beside a torch without CUDA its library
    does not load, and `import torchvision` then fails with "operator torchvision::nms does not
    exist", as it attaches shape rules to two operators that nobody registered. timm wants Python
    code of torchvision only. So the two are declared, without an implementation: whoever called
    them would get PyTorch's own error about that.

    Returns:
        The library, whose declarations live as long as it does; None where there was no need.
    """
    if torch.version.cuda is not None:
        return None
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None  # timm's own import will say so
    extension = Path(spec.origin).with_name("_C.so")
    try:
        torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
    except OSError:  # the loader's "libcudart.so... cannot open shared object file"
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in _OPERATORS:
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
        return library
    return None


@dataclass(frozen=True, slots=True)
class VitShape:
    """What a configuration must know of a named ViT. Sizes in pixels, `depth` in blocks."""

    image_size: int
    patch: int
    depth: int
    width: int


@cache
def shape_of(name: str) -> VitShape:
    """Looks a timm ViT up, without allocating its weights.

    Raises:
        UnavailableError: timm is not installed.
        SettingsError: timm has no such model, or it is not a ViT of square patches.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(_bare(name), timm.list_models(), n=3)
        raise SettingsError(
            f"timm {timm.__version__} has no model {name!r}",
            f"did you mean {', '.join(near)}?" if near else "e.g. timm:vit_base_patch16_384",
        )
    try:
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:  # timm's word for an unknown tag
        tags = timm.list_pretrained(f"{_bare(name)}.*")
        raise SettingsError(
            f"timm's {_bare(name)} has no weights {name.partition('.')[2]!r} ({error})",
            f"it has {', '.join(tags[:3]) or 'none'}",
        ) from error
    try:
        patch, depth = network.patch_embed.patch_size, len(network.blocks)
        square = patch[0] == patch[1] and callable(network.forward_intermediates)
    except (AttributeError, TypeError):
        square = False
    if not square:
        raise SettingsError(
            f"timm's {name} is not a vision transformer of square patches",
            "e.g. timm:vit_base_patch14_reg4_dinov2 or timm:vit_base_patch16_384",
        )
    size = network.pretrained_cfg["input_size"][-1]
    return VitShape(size, patch[0], depth, network.embed_dim)


class TimmTokens(nn.Module):
    """A timm ViT that gives the patch tokens of chosen blocks.

    Args:
        name: timm's name of the model, with or without a weights tag.
        image_size: side of the square input, a multiple of the patch.
        blocks: 0-based indices, ascending; the tokens after each of them.
        final_norm: apply the network's final LayerNorm to the tokens.

    Raises:
        UnavailableError: timm is not installed.
        SettingsError: an unknown name, a size that is no multiple of the patch, or a block
            beyond the depth.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, image_size: int, blocks: tuple[int, ...], final_norm: bool = False
    ) -> None:
        super().__init__()
        shape = shape_of(name)
        check_vit(name, image_size, blocks)
        self.name = name
        self.blocks = list(blocks)
        self.final_norm = final_norm
        self.width = shape.width
        self.network = import_timm().create_model(
            name, pretrained=False, num_classes=0, img_size=image_size
        )
        # [-1, 1] -> the mean and deviation of this network's training
        mean = torch.tensor(self.network.pretrained_cfg["mean"]).reshape(3, 1, 1)
        std = torch.tensor(self.network.pretrained_cfg["std"]).reshape(3, 1, 1)
        self.register_buffer("scale", 0.5 / std)
        self.register_buffer("shift", (0.5 - mean) / std)

    def forward(self, image: Tensor) -> list[Tensor]:
        """float32 [B, 3, S, S] in [-1, 1] -> per block [B, C, g, g], prefix tokens dropped."""
        maps = self.network.forward_intermediates(
            image * self.scale + self.shift,
            indices=self.blocks,
            norm=self.final_norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return list(maps)

    def load_weights(self, file: Path | None) -> None:
        """Fills the network with published weights, positions resampled to its input size.

        Args:
            file: safetensors in timm's key names; None asks timm's hub (its cache first).

        Raises:
            MissingInputError, DataError: the file is not there, or not this network's.
            UnavailableError: the hub has none, or cannot be reached.
        """
        if file is None:
            self._load(None, UnavailableError, "cannot be had from timm's hub")
            return
        if not file.is_file():
            raise MissingInputError(f"backbone weights {file} not found", "correct the path")
        if file.suffix != ".safetensors":
            raise DataError(
                f"backbone weights {file} are not a .safetensors file",
                "fetch the model.safetensors of that model's page; pickled weights run code",
            )
        self._load(file, DataError, f"cannot be read from {file}")

    def _load(
        self, file: Path | None, error: type[UnavailableError | DataError], trouble: str
    ) -> None:
        remedy = (
            "give the model.safetensors of that model's page with --backbone-weights FILE,"
            " or leave --backbone out"
        )
        try:
            filled = self._filled(file, seed=0)
        # What comes out depends on how far the hub's client got, and on its version: every
        # cause is reported, none is hidden.
        except Exception as cause:
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise error(
                f"the weights of timm's {self.name} {trouble} ({reason})", remedy
            ) from cause
        if file is not None:
            # timm only logs what a file lacks. Such a tensor is left as the seed made it.
            again = self._filled(file, seed=1)
            absent = sorted(k for k in filled if not torch.equal(filled[k], again[k]))
            if absent:
                raise error(
                    f"the weights of timm's {self.name} {trouble} (it lacks {absent[0]})", remedy
                )
        self.network.load_state_dict(filled)

    def _filled(self, file: Path | None, seed: int) -> dict[str, Tensor]:
        """The tensors of this network after timm filled them, at this network's input size."""
        place = {} if file is None else {"pretrained_cfg_overlay": {"file": str(file)}}
        size = self.network.patch_embed.img_size[-1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = import_timm().create_model(
                self.name, pretrained=True, num_classes=0, img_size=size, **place
            )
        tensors: dict[str, Tensor] = network.state_dict()
        return tensors


def check_vit(name: str, image_size: int, blocks: tuple[int, ...]) -> None:
    """Whether that ViT can give those blocks at that size.

    Raises:
        UnavailableError, SettingsError: see `TimmTokens`.
    """
    shape = shape_of(name)
    if image_size % shape.patch:
        near = max(1, round(image_size / shape.patch)) * shape.patch
        raise SettingsError(
            f"image size {image_size} is not a multiple of {name}'s patch, {shape.patch} px",
            f"e.g. --image-size {near}",
        )
    outside = [block for block in blocks if not 0 <= block < shape.depth]
    if outside:
        raise SettingsError(
            f"{name} has no block {outside[0]}, its blocks are 0 to {shape.depth - 1}",
            "choose two of them with --levels",
        )


class PlainViT(nn.Module):
    """A pre-norm ViT (Dosovitskiy et al. 2021) with learned positions, trained from scratch.

    It has no class token, as nothing here classifies: all tokens are patches.

    Args:
        image_size, patch: sides in pixels, the first a multiple of the second.
        width, depth, heads, mlp_ratio: of the transformer.
    """

    def __init__(
        self, *, image_size: int, patch: int, width: int, depth: int, heads: int, mlp_ratio: int
    ) -> None:
        super().__init__()
        self.patch, self.grid, self.width = patch, image_size // patch, width
        tokens = self.grid**2
        self.embed = nn.Linear(3 * patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(width, heads, tokens, mlp_ratio * width, MaskRule.OFF)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, 3, S, S] -> tokens after the final LayerNorm as a map [B, D, g, g]."""
        grid, patch = self.grid, self.patch
        cut = image.reshape(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        tokens = self.embed(cut.reshape(-1, grid * grid, 3 * patch * patch)) + self.position
        tokens = self.norm(self.blocks(tokens))  # [B, g*g, D]
        return tokens.transpose(1, 2).reshape(-1, self.width, grid, grid)  # type: ignore[no-any-return]
