"""Triton as an independent oracle of masked attention in FP16, twice over.

Triton's own interpreter computes the operator from a kernel that shares no line with ours; and what
Triton's compiler makes of that kernel for a GPU is PTX that another compiler than nvcc emitted, for
`tools.ptx` to run. Triton lives in an environment of its own below build/.
"""

from tools.triton_oracle.environment import UnavailableError, python
from tools.triton_oracle.oracle import Compiled, compile_kernel, interpret, run_compiled

__all__ = [
    "Compiled",
    "UnavailableError",
    "compile_kernel",
    "interpret",
    "python",
    "run_compiled",
]
