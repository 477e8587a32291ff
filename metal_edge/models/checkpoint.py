"""Checkpoints: weights in safetensors, the architecture as JSON in the same file's header.

One file, so that weights and configuration cannot be separated; no pickle, so that opening a
stranger's checkpoint runs no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metal_edge.errors import DataError, MissingInputError, OutputError
from metal_edge.files import atomic_file
from metal_edge.models.base import AnomalyModel
from metal_edge.models.registry import build_model, network_config

FORMAT = "metal_edge/1"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes tensors and JSON metadata to `path` in one atomic, synced rename.

    Raises:
        OutputError: the place cannot be written; an existing file stays untouched.
    """
    header = {"format": FORMAT, "meta": json.dumps(meta, sort_keys=True)}
    with atomic_file(path) as staging:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, staging, metadata=header)
        except SafetensorError as error:  # its own wrapping of a full disk
            raise OutputError(f"cannot write {path} ({error})", "free space there") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote.

    Raises:
        MissingInputError: no such file.
        DataError: not a safetensors file of ours, or damaged.
    """
    if not path.is_file():
        raise MissingInputError(f"checkpoint {path} not found", "train one with `metal-edge train`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError(f"{path} is not a metal_edge checkpoint", "train it again")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(header["meta"])
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"checkpoint {path} is damaged ({error})", "train it again") from error


def save_checkpoint(path: Path, model: AnomalyModel, meta: dict[str, Any]) -> None:
    """Saves a trained network with its configuration and `meta` (provenance)."""
    save_tensors(path, state_of(model), {"model": model.config.model_dump(mode="json"), **meta})


def load_checkpoint(path: Path) -> tuple[AnomalyModel, dict[str, Any]]:
    """Loads a network ready for inference (eval mode) and its metadata.

    Raises:
        MissingInputError, DataError: see `load_tensors`; also when a tensor is missing, has
            another shape, or is not finite.
    """
    tensors, meta = load_tensors(path)
    try:
        model = build_model(network_config.validate_python(meta["model"]))
        model.load_state_dict(tensors)
    except (KeyError, ValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"checkpoint {path} does not fit its configuration ({reason})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"checkpoint {path}: {name} is not finite", "train it again")
    return model.eval(), meta


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A detached copy of a module's persistent tensors."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
