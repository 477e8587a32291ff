"""Where training runs: one CPU, one GPU, or several of either, through Lightning Fabric."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from metal_edge.errors import DataError, SettingsError, UnavailableError
from metal_edge.training.config import Precision

FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Accelerator(StrEnum):
    """What computes; AUTO takes the GPU where CUDA works."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Devices:
    """What was asked for: processes on the CPU, or GPUs with one process each."""

    accelerator: Accelerator = Accelerator.CPU
    count: int = 1


@dataclass(frozen=True, slots=True)
class Hardware:
    """What will be used."""

    kind: Literal["cpu", "cuda"]
    count: int
    precision: FabricPrecision


def resolve(devices: Devices, precision: Precision) -> Hardware:
    """Looks at the machine.

    Raises:
        UnavailableError: no GPU, or fewer than asked for.
        SettingsError: arithmetic that the hardware does not have.
    """
    cuda = torch.cuda.is_available()
    if devices.accelerator is Accelerator.GPU and not cuda:
        raise UnavailableError(
            "--accelerator gpu: PyTorch finds no CUDA device",
            "use --accelerator cpu, or install a CUDA build of torch and the driver",
        )
    if devices.accelerator is Accelerator.CPU or not cuda:
        return Hardware("cpu", devices.count, _cpu_precision(precision))
    if (present := torch.cuda.device_count()) < devices.count:
        raise UnavailableError(
            f"--devices {devices.count}: this machine has {present} GPU(s)",
            f"use --devices {present}, or --accelerator cpu",
        )
    return Hardware("cuda", devices.count, _gpu_precision(precision))


def check_work(hardware: Hardware, images: int, batch_size: int) -> None:
    """Every process must have an image of its own in a full batch.

    Args:
        hardware: from `resolve`.
        images: how many are trained on.
        batch_size: images per step, over all processes.

    Raises:
        SettingsError, DataError: a batch, or all images, are fewer than processes.
    """
    if batch_size < hardware.count:
        raise SettingsError(
            f"a batch of {batch_size} cannot be divided between {hardware.count} processes",
            f"use --devices {batch_size}, or a larger --batch-size",
        )
    if images < hardware.count:
        raise DataError(
            f"{images} training image(s) cannot be divided between {hardware.count} processes",
            f"use --devices {max(images, 1)}, or add images",
        )


class Compute:
    """One process's view of the devices: its share of a batch, and what all agree on.

    Args:
        fabric: launched.
        precision: autocast and, for 16-mixed, the loss scaler; None for float32.
    """

    def __init__(self, fabric: Fabric, precision: MixedPrecision | None) -> None:
        self.fabric = fabric
        self.precision = precision
        self.world = fabric.world_size
        self.rank = fabric.global_rank

    @property
    def first(self) -> bool:
        """Whether this process decides, writes files and shows progress."""
        return self.rank == 0

    def share(self, chosen: Tensor) -> Tensor:
        """This process's part of a batch of indices [B]; sizes differ by one at most."""
        return chosen.tensor_split(self.world)[self.rank]

    def total(self, *values: float) -> tuple[float, ...]:
        """Sums of each value over all processes, the same everywhere; exact if one is not 0."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        self.fabric.all_reduce(tensor, reduce_op="sum")
        return tuple(tensor.tolist())

    def from_first(self, *values: float) -> tuple[float, ...]:
        """The first process's values, for all."""
        return self.total(*(values if self.first else (0.0,) * len(values)))

    def scaler_state(self) -> dict[str, Any]:
        """JSON numbers of the loss scaler; empty without one."""
        return self.precision.state_dict() if self.precision else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """What `scaler_state` gave; a state from other arithmetic is of no use and ignored."""
        if state and self.precision:
            self.precision.load_state_dict(state)


class _Autocast(MixedPrecision):
    """Inputs stay float32: autocast rounds them where it multiplies, and nowhere else."""

    def convert_input(self, data: Any) -> Any:
        return data


def on_one_device(hardware: Hardware) -> Compute:
    """The device in this very process."""
    precision = _plugin(hardware)
    fabric = Fabric(accelerator=hardware.kind, devices=1, strategy="auto", plugins=precision)
    return Compute(fabric, precision)


def join_processes(hardware: Hardware, rank: int, meeting: Path, timeout_s: float) -> Compute:
    """Waits for the other processes; called by each of them, in a process of its own.

    They find each other through a file, so that no port can be taken by another program.

    Args:
        hardware: the same in all.
        rank: 0..count - 1.
        meeting: a path on this machine where nothing lies yet.
        timeout_s: how long to wait for another process before giving up.
    """
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(hardware.count)}
    backend, device = "gloo", None
    if hardware.kind == "cuda":
        backend, device = "nccl", torch.device("cuda", rank)
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    torch.distributed.init_process_group(
        backend,
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=hardware.count,
        timeout=timeout,
        device_id=device,
    )
    strategy = DDPStrategy(
        cluster_environment=LightningEnvironment(), timeout=timeout, broadcast_buffers=False
    )
    precision = _plugin(hardware)
    fabric = Fabric(
        accelerator=hardware.kind,
        devices=hardware.count,
        strategy=strategy,
        plugins=precision,
    )
    fabric.launch()
    fabric.barrier()
    return Compute(fabric, precision)


def _plugin(hardware: Hardware) -> MixedPrecision | None:
    if hardware.precision == "32-true":
        return None
    return _Autocast(hardware.precision, hardware.kind)


def _cpu_precision(precision: Precision) -> FabricPrecision:
    if precision is Precision.FP16:
        raise SettingsError(
            "--train-precision fp16 needs a GPU",
            "use bf16 or fp32 on the CPU, or --accelerator gpu",
        )
    if precision is Precision.BF16 or (precision is Precision.AUTO and _cpu_multiplies_bf16()):
        return "bf16-mixed"
    return "32-true"


def _cpu_multiplies_bf16() -> bool:
    """Natively it is three times faster than float32, emulated slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _gpu_precision(precision: Precision) -> FabricPrecision:
    if precision is Precision.FP32:
        return "32-true"
    if precision is Precision.FP16:
        return "16-mixed"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    if precision is Precision.BF16:
        raise SettingsError(
            "--train-precision bf16: this GPU has no bfloat16", "use fp16, fp32 or auto"
        )
    return "16-mixed"
