"""PTX written by tests: kernels around a few instructions, and launches of them."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from tools.ptx import Module, Report, launch

HEADER = ".version 8.0\n.target sm_87\n.address_size 64\n"

# PTX type -> the NumPy type that tests hand over and get back
DTYPES = {
    "u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16, "b16": np.uint16,
    "f16": np.float16, "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "f32": np.float32,
    "f16x2": np.uint32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f64": np.float64,
}  # fmt: skip


def kernel(body: str, parameters: int = 1, registers: str = "", shared: str = "") -> str:
    """A module with the kernel `k`; its thread is in %tid, its pointers are in %p0, %p1, ...

    Registers: %a, %b, ... of each size: %r<16> 32 bits, %rd<16> 64 bits, %h<16> 16 bits, %q<8>.
    """
    declared = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    loads = "\n".join(f"ld.param.u64 %p{i}, [p{i}];" for i in range(parameters))
    return f"""{HEADER}
.visible .entry k({declared}) {{
  .reg .b32 %r<16>; .reg .b64 %rd<16>; .reg .b16 %h<16>; .reg .pred %q<8>;
  .reg .b32 %tid; .reg .b64 %p<8>; {registers}
  {shared}
  mov.u32 %tid, %tid.x;
  {loads}
{body}
  ret;
}}"""


def run(body: str, *arrays: NDArray, threads: int = 32, grid: int = 1, **options) -> Report:
    """Launches `kernel(body)` on arrays; options of `launch`, and `registers` and `shared`."""
    text = kernel(
        body, len(arrays), options.pop("registers", ""), options.pop("shared", "")
    )  # fmt: skip
    return launch(_parse(text), "k", grid, threads, list(arrays), **options)


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Module:
    return Module.parse(text)


def element(pointer: int, dtype: type, into: str) -> str:
    """Instructions that put the address of the thread's element of a pointer into a register."""
    size = np.dtype(dtype).itemsize
    return f"mul.wide.u32 {into}, %tid, {size}; add.s64 {into}, {into}, %p{pointer};"


def apply(instruction: str, result: str, *operands: tuple[str, NDArray]) -> NDArray:
    """Runs one instruction in as many lanes as the operands have elements.

    `instruction` names its result `d` and its operands `a`, `b`, `c`, `e`; `result` and theirs
    are PTX types. "pred" as result gives bool.
    """
    count = len(operands[0][1])
    names = "abce"[: len(operands)]
    lines, declared = [], []
    for position, (name, (type_name, array)) in enumerate(zip(names, operands, strict=True)):
        dtype = DTYPES[type_name]
        assert array.dtype == dtype, (array.dtype, dtype)
        bits = max(16, 8 * np.dtype(dtype).itemsize)  # there are no registers of 8 bits
        declared.append(f".reg .b{bits} {name};")
        lines.append(element(position, dtype, "%rd0"))
        load = f"b{8 * np.dtype(dtype).itemsize}"
        lines.append(f"ld.global.{load} {name}, [%rd0];")
    at = len(operands)
    if result == "pred":
        out = np.zeros(count, np.uint32)
        declared.append(".reg .pred d;")
        tail = [
            element(at, np.uint32, "%rd0"),
            "selp.b32 %r0, 1, 0, d;",
            "st.global.b32 [%rd0], %r0;",
        ]
    else:
        out = np.zeros(count, DTYPES[result])
        bits = max(16, 8 * out.itemsize)
        declared.append(f".reg .b{bits} d;")
        tail = [element(at, out.dtype.type, "%rd0"), f"st.global.b{8 * out.itemsize} [%rd0], d;"]
    body = "\n".join([*lines, instruction + ";", *tail])
    inputs = [array.copy() for _, array in operands]
    run(body, *inputs, out, threads=count, registers=" ".join(declared))
    return out.astype(bool) if result == "pred" else out
