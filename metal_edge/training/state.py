"""What a training run must remember to go on exactly where it was killed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metal_edge.errors import DataError
from metal_edge.models.checkpoint import load_tensors, save_tensors


@dataclass
class Position:
    """How far a run is. The order of an epoch follows from (seed, epoch): nothing else to keep.

    `step_in_epoch` counts finished batches; `elapsed_s` is training time over all sittings.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    best_loss: float = float("inf")
    best_epoch: int = -1
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    path: Path,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    best: dict[str, Tensor],
    fingerprint: str,
    scaler: dict[str, Any],
) -> None:
    """Writes everything to one file, atomically.

    Args:
        path: the state file.
        position: how far the run is.
        model: the network as it is now.
        best: weights of the best validation epoch so far; empty before the first.
        optimizer: Adam-like, one tensor state per parameter.
        fingerprint: identifies data and configuration; checked on resume.
        scaler: JSON state of the loss scaler; empty without one.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    meta = {
        "position": _finite(asdict(position)),
        "fingerprint": fingerprint,
        "scaler": scaler,
    }
    save_tensors(path, tensors, meta)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[Position, dict[str, Tensor], dict[str, Any]]:
    """Restores model and optimiser in place; returns position, best weights, loss scaler.

    Raises:
        DataError: the file belongs to a run with other data or configuration.
    """
    tensors, meta = load_tensors(path)
    if meta["fingerprint"] != fingerprint:
        raise DataError(
            f"{path} was begun with other images or options",
            "repeat the first command, or start anew with --fresh",
        )
    model.load_state_dict(_below("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimizer.", tensors).items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    values = dict(meta["position"])
    if values["best_loss"] is None:
        values["best_loss"] = float("inf")
    return Position(**values), _below("best.", tensors), meta.get("scaler", {})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a run without a best epoch stores null."""
    return values | {"best_loss": None if values["best_epoch"] < 0 else values["best_loss"]}
