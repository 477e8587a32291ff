"""Masked attention by Triton: interpreted by Triton, or compiled by it and run by tools.ptx."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.ptx import Module, Report, launch
from tools.triton_oracle.environment import call

Half = NDArray[np.float16]
Mask = NDArray[np.bool_]


def mask_words(allowed: Mask) -> NDArray[np.uint32]:
    """bool [N, N] to [N, ceil(N / 32)]: bit j % 32 of word j // 32."""
    rows, columns = allowed.shape
    words = -(-columns // 32)
    bits = np.zeros((rows, words * 32), bool)
    bits[:, :columns] = allowed
    packed = np.packbits(bits, axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32)


def interpret(qkv: Half, allowed: Mask, heads: int, scale: float) -> Half:
    """The operator by Triton's own interpreter.

    Args:
        qkv: [B, N, 3 W], query, key and value side by side.
        allowed: [N, N]; query i may look at key j.
        heads: W = heads * head dim, a power of two.
        scale: multiplies the scores.

    Returns:
        [B, N, W].

    Raises:
        UnavailableError: no Triton.
    """
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "in.npz"), Path(name, "out.npy")
        np.savez(source, qkv=qkv, mask=mask_words(allowed), heads=heads, scale=scale)
        call(["interpret", str(source), str(target)], interpreted=True)
        out: Half = np.load(target)
        return out


@dataclass(frozen=True)
class Compiled:
    """What Triton compiled, and how to launch it: one block per `rows` queries of a head."""

    ptx: str
    kernel: str
    threads: int
    shared_bytes: int
    rows: int
    head_dim: int


def compile_kernel(head_dim: int, capability: int = 87) -> Compiled:
    """Compiles the kernel ahead of time for a GPU, as 87 for sm_87.

    Raises:
        UnavailableError: no Triton.
    """
    with tempfile.TemporaryDirectory() as name:
        target = Path(name, "kernel.json")
        call(["compile", str(target), str(head_dim), str(capability)])
        return Compiled(**json.loads(target.read_text()), head_dim=head_dim)


def run_compiled(
    compiled: Compiled,
    qkv: Half,
    allowed: Mask,
    heads: int,
    scale: float,
    *,
    seed: int | None = None,
    raises: bool = True,
) -> tuple[Half, Report]:
    """The operator by the interpreter of PTX; arguments as for `interpret`.

    Raises:
        ViolationError: the kernel broke a rule, unless `raises` is False.
    """
    images, tokens, triple = qkv.shape
    if triple != 3 * heads * compiled.head_dim:
        raise ValueError(f"width {triple} is not 3 x {heads} heads x {compiled.head_dim}")
    out: Half = np.full((images, tokens, triple // 3), np.nan, np.float16)
    mask = mask_words(allowed)
    module = Module.parse(compiled.ptx)
    arguments = [qkv.copy(), out, mask, tokens, heads, mask.shape[1], scale / math.log(2)]
    # Triton appends pointers to scratch memory, which this kernel does not use.
    spare = len(module.kernel(compiled.kernel).parameters) - len(arguments)
    report = launch(
        module,
        compiled.kernel,
        (-(-tokens // compiled.rows), images * heads),
        compiled.threads,
        [*arguments, *[0] * spare],
        shared_bytes=compiled.shared_bytes,
        seed=seed,
        raises=raises,
    )
    return out, report
