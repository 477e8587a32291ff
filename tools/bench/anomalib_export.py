"""anomalib's own PatchCore, filled and exported by anomalib: runs in anomalib's environment.

Usage: python -m tools.bench.anomalib_export TRAIN.npy FOLDER RATIO

TRAIN.npy holds uint8 [N, S, S, 3] RGB; FOLDER gets `weights/onnx/model.onnx`, one frame a call.
anomalib's defaults, but for the backbone, which is ours with the same offline weights at the
strides of its default layers, and no post-processor: its raw map and score lose no rank.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from metal_edge.models.backbone import EfficientNetLite0, load_imagenet_weights
from metal_edge.models.vit import import_timm

BACKBONE = "tf_efficientnet_lite0"
LAYERS = ("blocks.2", "blocks.4")  # strides 8 and 16, as layer2 and layer3 of its ResNets
BATCH = 16
SEED = 0


def offline_weights(extractor: torch.nn.Module) -> None:
    """Fills timm's network from the installed package: the same layers in the same order."""
    ours = EfficientNetLite0(("stride32",))
    load_imagenet_weights(ours)
    named = zip(extractor.state_dict(), ours.state_dict().values(), strict=False)
    extractor.load_state_dict(dict(named))


def export(images: torch.Tensor, folder: Path, ratio: float) -> Path:
    """Fills the memory with the pictures' tokens and writes the ONNX file.

    Args:
        images: uint8 [N, 3, S, S].
        ratio: share of the tokens that is remembered.
    """
    import_timm()  # declares what torchvision, which both import, may lack
    from anomalib.models import Patchcore  # noqa: PLC0415
    from anomalib.pre_processing import PreProcessor  # noqa: PLC0415
    from torchvision.transforms.v2 import Normalize  # noqa: PLC0415

    torch.manual_seed(SEED)
    np.random.seed(SEED)
    patchcore = Patchcore(
        backbone=BACKBONE,
        layers=LAYERS,
        pre_trained=False,
        coreset_sampling_ratio=ratio,
        # The mean and deviation that these weights were trained with; anomalib assumes ImageNet's.
        pre_processor=PreProcessor(transform=Normalize(mean=[0.5] * 3, std=[0.5] * 3)),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    offline_weights(patchcore.model.feature_extractor.feature_extractor)
    patchcore.train()
    with torch.no_grad():
        for piece in torch.split(images, BATCH):
            patchcore.model(patchcore.pre_processor(piece.float() / 255.0))
        patchcore.fit()
    # Without dynamic shapes: with them, this version fixes two images a call.
    size = (images.shape[2], images.shape[3])
    return Path(
        patchcore.eval().to_onnx(folder, input_size=size, dynamic_shapes=None, dynamic_axes=None)
    )


def main() -> None:
    """See the module."""
    pictures, folder, ratio = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    images = torch.from_numpy(np.load(pictures)).permute(0, 3, 1, 2)
    print(export(images, folder, ratio))


if __name__ == "__main__":
    main()
