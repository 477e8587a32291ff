"""What the instructions do, one module per class; importing this registers them all."""

from tools.ptx.ops import (
    arithmetic,
    async_copy,
    bits,
    collective,
    compare,
    convert,
    flow,
    matrix,
    memory,
)

__all__ = [
    "arithmetic",
    "async_copy",
    "bits",
    "collective",
    "compare",
    "convert",
    "flow",
    "matrix",
    "memory",
]
