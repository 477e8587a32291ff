"""The fundamental types of PTX and how NumPy holds them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# `.b` types carry bits without meaning and are held unsigned; so are bf16 and packed pairs, which
# NumPy does not have.
TYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    "u8": np.dtype(np.uint8),
    "s8": np.dtype(np.int8),
    "b8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "s16": np.dtype(np.int16),
    "b16": np.dtype(np.uint16),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "s32": np.dtype(np.int32),
    "b32": np.dtype(np.uint32),
    "f32": np.dtype(np.float32),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "s64": np.dtype(np.int64),
    "b64": np.dtype(np.uint64),
    "f64": np.dtype(np.float64),
}

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def is_float(name: str) -> bool:
    """Whether a type name is a scalar floating-point type that NumPy computes with."""
    return name in ("f16", "f32", "f64")


def is_signed(name: str) -> bool:
    """Whether a type name is a signed integer."""
    return name[0] == "s"


def unsigned(size: int) -> np.dtype[Any]:
    """The unsigned integer type of `size` bytes."""
    return np.dtype(UNSIGNED[size])


def register_view(storage: Array, name: str) -> Array:
    """`storage`, the unsigned bits of one register in every lane, seen as the PTX type `name`.

    PTX lets an instruction name a type narrower than the register it uses: that means the low
    bytes, which on a little-endian machine is a strided view of the same memory.
    """
    dtype = TYPES[name]
    if np.bool_ in (storage.dtype, dtype) or dtype.itemsize == storage.dtype.itemsize:
        return storage if storage.dtype == dtype else storage.view(dtype)
    if dtype.itemsize > storage.dtype.itemsize:
        raise ValueError(f"a {8 * storage.dtype.itemsize}-bit register cannot hold .{name}")
    return storage.view(dtype)[:: storage.dtype.itemsize // dtype.itemsize]


def destination_view(storage: Array, name: str) -> Array:
    """`storage` as the destination of a value of type `name`.

    A narrow integer fills a wider register by sign or zero extension: assigning a signed or an
    unsigned value to a view of the register's own size does that.
    """
    if storage.dtype == np.bool_:
        return storage
    dtype = TYPES[name]
    size = storage.dtype.itemsize
    if dtype.itemsize == size:
        return storage.view(dtype)
    if dtype.itemsize > size or dtype == np.bool_:
        raise ValueError(f"a {8 * size}-bit register cannot take .{name}")
    if is_float(name):
        return register_view(storage, name)
    return storage.view(UNSIGNED[size])
