"""`python -m metal_edge.daemon --config line.toml`: the daemon without the rest of the CLI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metal_edge.daemon.service import run_daemon
from metal_edge.errors import MetalEdgeError
from metal_edge.settings import load_settings


def main() -> int:
    """Parses the command line; an error is one line on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m metal_edge.daemon", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the line's TOML file")
    arguments = parser.parse_args()
    try:
        return run_daemon(load_settings(arguments.config))
    except MetalEdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
