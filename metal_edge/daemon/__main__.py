"""`python -m metal_edge.daemon --config line.toml`: the daemon without the rest of the CLI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metal_edge.daemon.service import run_daemon
from metal_edge.errors import MetalEdgeError


def main() -> int:
    """Parses the command line; an error is one line on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m metal_edge.daemon", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        action="append",
        help="a line's TOML file; give it several times for several lines",
    )
    parser.add_argument(
        "--keep-trying",
        action="store_true",
        help="a line that cannot be armed is tried again; several lines always are",
    )
    arguments = parser.parse_args()
    try:
        return run_daemon(arguments.config, keep_trying=arguments.keep_trying)
    except MetalEdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
