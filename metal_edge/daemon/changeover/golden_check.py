"""The golden images once more, while the line works."""

from __future__ import annotations

import logging

from metal_edge.bundle import Bundle
from metal_edge.daemon.line.model import Models
from metal_edge.daemon.mqtt.commands import Answer
from metal_edge.errors import BundleError, MetalEdgeError
from metal_edge.runtime.load import check_golden

log = logging.getLogger(__name__)


def check_again(models: Models) -> Answer:
    """Whether the bundles on disk are still whole, and the engines still give their scores.

    One image at a time through the engine that serves: a part waits for one of them at most.
    """
    images, worst, tolerance = 0, 0.0, 0.0
    try:
        for model in models.values():
            if Bundle.open(model.bundle.path).digest != model.bundle.digest:
                raise BundleError(
                    f"{model.bundle.path} is another bundle than the one that serves",
                    "change to the recipe again to use it",
                )
            result = check_golden(model.bundle, model.runner)
            images += result.images
            worst, tolerance = max(worst, result.worst_difference), result.tolerance
    except MetalEdgeError as error:
        log.error("golden check failed: %s", error)
        return Answer("failed", str(error))
    except Exception:
        log.exception("golden check failed")
        return Answer("failed", "internal error; see the log")
    log.info("golden check: %d images, worst difference %.3g", images, worst)
    return Answer("done", images=images, worst_difference=worst, tolerance=tolerance)
