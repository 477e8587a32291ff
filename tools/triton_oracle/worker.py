# mypy: ignore-errors
# ruff: noqa: PLC0415 - the compiler is not imported to interpret
"""Runs inside the environment that has Triton.

TRITON_INTERPRET=1 python worker.py interpret inputs.npz out.npy
python worker.py compile out.json HEAD_DIM CAPABILITY
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from kernel import masked_attention

ROWS, COLUMNS = 64, 32  # 16 rows a warp: with fewer, warps would do the same work twice
LOG2E = 1 / math.log(2)


class HostTensor:
    """As much of torch.Tensor as Triton's interpreter asks of its arguments, on a NumPy array."""

    def __init__(self, array):
        self.array = array
        self.dtype = f"torch.{array.dtype}"

    def data_ptr(self):
        """The address of the memory, which the interpreter reads and writes."""
        return self.array.ctypes.data

    def untyped_storage(self):
        """The memory behind the tensor: this."""
        return self

    def cpu(self):
        """It is there already."""
        return self

    def new_empty(self, *_, **__):
        """A tensor that `set_` fills in."""
        return HostTensor(self.array)

    def set_(self, storage, *_):
        """Takes over the storage; all tensors here are whole and contiguous."""
        self.array = storage.array

    def storage_offset(self):
        """Elements before the first."""
        return 0

    def size(self):
        """Extents."""
        return self.array.shape

    def stride(self):
        """Steps in elements."""
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def copy_(self, other):
        """Results are here already: nothing was copied."""


def interpret(source, target):
    """Runs the kernel on Triton's interpreter; inputs qkv, mask, heads, scale from an .npz file."""
    data = np.load(source)
    qkv, mask, heads = np.ascontiguousarray(data["qkv"]), data["mask"].view(np.int32), data["heads"]
    images, tokens, width3 = qkv.shape
    heads = int(heads)
    out = np.full((images, tokens, width3 // 3), np.nan, np.float16)
    grid = (-(-tokens // ROWS), images * heads)
    masked_attention[grid](
        HostTensor(qkv), HostTensor(out), HostTensor(np.ascontiguousarray(mask)),
        tokens, heads, mask.shape[1], float(data["scale"]) * LOG2E,
        D=width3 // 3 // heads, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    np.save(target, out)


def compile_ahead(target, head_dim, capability):
    """Compiles for a GPU that is not here; writes PTX and what a launch needs as JSON."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        "QKV": "*fp16", "OUT": "*fp16", "MASK": "*i32", "N": "i32", "heads": "i32",
        "words": "i32", "scale_log2e": "fp32",
        "D": "constexpr", "ROWS": "constexpr", "COLUMNS": "constexpr",
    }  # fmt: skip
    source = ASTSource(
        fn=masked_attention,
        signature=signature,
        constexprs={"D": head_dim, "ROWS": ROWS, "COLUMNS": COLUMNS},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)},
    )
    built = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": 2},
    )
    description = {
        "ptx": built.asm["ptx"],
        "kernel": built.metadata.name,
        "threads": 32 * built.metadata.num_warps,
        "shared_bytes": built.metadata.shared,
        "rows": ROWS,
    }
    Path(target).write_text(json.dumps(description))


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        interpret(sys.argv[2], sys.argv[3])
    else:
        compile_ahead(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
