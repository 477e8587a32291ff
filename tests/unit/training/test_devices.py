"""What may be asked of the devices, and how it is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.errors import DataError, SettingsError, UnavailableError
from metal_edge.training.config import Precision
from metal_edge.training.devices import (
    Accelerator,
    Compute,
    Devices,
    Hardware,
    check_work,
    on_one_device,
    resolve,
)

CPU = Devices(Accelerator.CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without() -> None:
    with pytest.raises(UnavailableError, match=r"no CUDA device.*--accelerator cpu"):
        resolve(Devices(Accelerator.GPU), Precision.AUTO)
    assert resolve(Devices(Accelerator.AUTO, 2), Precision.FP32) == Hardware("cpu", 2, "32-true")


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        resolve(CPU, Precision.FP16)


@pytest.mark.parametrize(
    ("images", "batch", "error", "told"),
    [
        (100, 3, SettingsError, "a batch of 3 cannot be divided between 4 .*--devices 3"),
        (2, 16, DataError, r"2 training image\(s\) cannot be divided between 4 .*--devices 2"),
    ],
)
def test_fewer_images_than_processes_are_refused(
    images: int, batch: int, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        check_work(Hardware("cpu", 4, "32-true"), images, batch)
    check_work(Hardware("cpu", 2, "32-true"), images, batch)


@given(size=st.integers(1, 70), world=st.integers(1, 9))
def test_shares_are_the_batch_in_order_and_nearly_equal(size: int, world: int) -> None:
    compute = on_one_device(resolve(CPU, Precision.FP32))
    shares = [_as(compute, rank, world).share(torch.arange(size)) for rank in range(world)]
    assert torch.equal(torch.cat(shares), torch.arange(size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def _as(compute: Compute, rank: int, world: int) -> Compute:
    compute.rank, compute.world = rank, world
    return compute


def test_bf16_changes_the_products_and_not_the_input() -> None:
    """Rounding the target before the network would change what is reconstructed."""
    compute = on_one_device(resolve(CPU, Precision.BF16))
    network = compute.fabric.setup(_Probe())
    target = torch.full((1, 4), 1.0 + 2.0**-12)  # not a bfloat16 number
    product = network(target)
    assert product.dtype == torch.float32
    assert torch.equal(network.seen, target)
    assert network.product_dtype == torch.bfloat16


class _Probe(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        product = self.linear(x)
        self.product_dtype = product.dtype
        return product
