"""Which names real bindings have: the child process of `bindings`, one per TensorRT version.

Standard input: {"chains": [...]}. Standard output: {"version", "missing": chains that do not
exist, "members": every attribute of every class}.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> None:
    """Answers one question."""
    trt = importlib.import_module("tensorrt_bindings")
    chains = json.load(sys.stdin)["chains"]
    classes = [value for value in vars(trt).values() if isinstance(value, type)]
    answer = {
        "version": trt.__version__,
        "missing": [chain for chain in chains if not _exists(trt, chain)],
        "members": sorted({name for kind in classes for name in dir(kind)}),
    }
    json.dump(answer, sys.stdout)


def _exists(value: Any, chain: str) -> bool:
    for name in chain.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


if __name__ == "__main__":
    main()
