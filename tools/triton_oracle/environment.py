"""An environment with Triton below build/, made once.

python -m tools.triton_oracle.environment     # make it, say where it is
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "triton"
# Triton 3.6's interpreter does not know NumPy 2.4. Triton needs no torch here: see worker.py.
PINS = ("triton==3.6.0", "numpy==2.3.5")
_TIMEOUT_S = 1800  # 200 MB to fetch


class UnavailableError(Exception):
    """Triton cannot be had here; the message says why."""


def python(cache: Path = CACHE) -> Path:
    """The Python of the environment, which is made if it is not there.

    Raises:
        UnavailableError: no wheels for this machine, or no package index.
    """
    name = "-".join(pin.replace("==", "-") for pin in PINS)
    place = cache / f"{name}-{sys.implementation.cache_tag}"
    if not place.is_dir():
        _make(place)
    return place / "bin" / "python"


def _make(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="making-") as name:
        made = Path(name) / "environment"
        _run([sys.executable, "-m", "venv", str(made)])
        install = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        _run([*install, "--disable-pip-version-check", "--only-binary", ":all:", *PINS])
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # another process may have been faster
                raise


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(
            f"no environment with {', '.join(PINS)}: {said[-1] if said else '?'}"
        )


def call(arguments: list[str], *, interpreted: bool = False) -> None:
    """Runs worker.py in the environment.

    Raises:
        UnavailableError: the environment cannot be made.
        RuntimeError: the worker failed; with what it printed.
    """
    worker = Path(__file__).with_name("worker.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(CACHE / "compiled")}
    # Neither this environment's packages nor its search path belong into the other.
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTHON")}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [str(python()), str(worker), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"worker.py {arguments[0]} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        print(python())
    except UnavailableError as error:
        sys.exit(str(error))
