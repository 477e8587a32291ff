"""Calls functions of a host library of kernels: here, or in a process of its own.

As a script it is that process: `python host_kernels.py LIBRARY FUNCTION SEED ARGUMENTS RESULTS`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Argument = np.ndarray | int
_TIMEOUT_S = 120
_REFUSED = 3  # exit status where the launch returned an error


class KernelError(RuntimeError):
    """A launch failed; with the emulation's words."""


def call(library: Path, function: str, arguments: list[Argument], seed: int = 0) -> None:
    """Calls `int32_t function(pointer or int32_t...)`; arrays are passed in place."""
    loaded = ctypes.CDLL(str(library))
    loaded.simt_last_error.restype = ctypes.c_char_p
    loaded.simt_set_schedule(ctypes.c_uint32(seed))
    passed = [
        ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_void_p(value.ctypes.data)
        for value in arguments
    ]
    status = loaded[function](*passed)
    if status:
        raise KernelError(f"error {status}: {loaded.simt_last_error().decode()}")


@dataclass(frozen=True)
class Outcome:
    """Of a call in another process: its exit status, what it printed, the arrays after it."""

    status: int
    text: str
    arguments: list[Argument]

    @property
    def failed(self) -> bool:
        return self.status != 0


def call_apart(
    library: Path,
    function: str,
    arguments: list[Argument],
    *,
    folder: Path,
    seed: int = 0,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """`call` where a crash does no harm; `environment`: of a sanitizer."""
    given, got = folder / "given.npz", folder / "got.npz"
    got.unlink(missing_ok=True)
    np.savez(given, **{f"{i:02}": value for i, value in enumerate(arguments)})
    done = subprocess.run(
        [sys.executable, __file__, library, function, str(seed), given, got],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    after = _load(got) if done.returncode == 0 else []
    return Outcome(done.returncode, done.stdout + done.stderr, after)


def _load(path: Path) -> list[Argument]:
    with np.load(path) as stored:
        values = [stored[name] for name in sorted(stored.files)]
    return [value if value.ndim else int(value) for value in values]


def _main() -> None:
    library, function, seed, given, got = sys.argv[1:]
    # A fresh copy of its own memory each, so that AddressSanitizer knows where an array ends.
    arguments = [value if isinstance(value, int) else value.copy() for value in _load(Path(given))]
    try:
        call(Path(library), function, arguments, int(seed))
    except KernelError as error:
        print(error)
        sys.exit(_REFUSED)
    np.savez(got, **{f"{i:02}": value for i, value in enumerate(arguments)})


if __name__ == "__main__":
    _main()
