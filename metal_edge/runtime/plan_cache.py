"""Where TensorRT plans lie on this machine, and which of them may be run.

A plan is machine code for one GPU and one TensorRT version, so it is no part of the bundle: the
bundle carries the ONNX file, the plan is made from it on the machine that runs it. Layout::

    <root>/<12 digits of the ONNX SHA-256>-<20 digits of the key's>/
      engine.plan      what TensorRT deserialises
      manifest.json    the whole key, the plan's size and SHA-256, how it was built
      build.log        the builder's own words

Folders are written by `files.write_folder`, so they appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metal_edge.errors import UnavailableError
from metal_edge.files import write_folder

PLAN = "engine.plan"
MANIFEST = "manifest.json"
LOG = "build.log"
ROOT_VARIABLE = "METAL_EDGE_PLANS"
# Readable by the daemon, whose unit has an own user and no home.
SHARED_ROOT = Path("/var/cache/metal-edge/plans")
# Largest batch of a plan's optimisation profile; the line itself runs one frame at a time.
MAX_BATCH = 8
NATIVE = "native"  # attention that TensorRT fuses itself; everything else is the plugin's
_MANIFEST_LIMIT = 1 << 20


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanKey(_Record):
    """Everything that a plan depends on: if any of it differs, it is another plan.

    Attributes:
        onnx_sha256: hex digest of the ONNX file, precision and preprocessing included.
        tensorrt: the library's version, e.g. "10.3.0".
        gpu: the device's name, e.g. "Orin".
        compute_capability: e.g. "8.7".
        plugin_sha256: hex digest of the plugin library that the machine has; None without one.
            Also where a plan does not use it: another library would have been chosen from anew.
        max_batch: largest batch of the optimisation profile.
    """

    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensorrt: str = Field(min_length=1)
    gpu: str = Field(min_length=1)
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    plugin_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    max_batch: int = Field(default=MAX_BATCH, ge=1)

    @property
    def folder(self) -> str:
        """Name of the plan's folder."""
        fields = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=True)
        return f"{self.onnx_sha256[:12]}-{hashlib.sha256(fields.encode()).hexdigest()[:20]}"

    @property
    def machine(self) -> str:
        """GPU and TensorRT, for messages."""
        return f"{self.gpu} (sm {self.compute_capability}), TensorRT {self.tensorrt}"

    @property
    def described(self) -> str:
        """The key without the model, for messages."""
        plugin = "" if self.plugin_sha256 is None else f", plugin {self.plugin_sha256[:8]}"
        return self.machine + plugin


class PlanManifest(_Record):
    """What lies in a plan's folder."""

    schema_version: Literal[1] = 1
    key: PlanKey
    size: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_utc: str
    build: dict[str, Any]

    @property
    def needs_plugin(self) -> bool:
        """Whether the plan cannot be deserialised without our plugin."""
        return bool(self.build.get("attention", NATIVE) != NATIVE)


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """A plan that was read and found whole."""

    folder: Path
    manifest: PlanManifest
    content: bytes


def plan_roots(environ: Mapping[str, str], home: Path, is_root: bool) -> tuple[Path, ...]:
    """Folders that may hold plans; new ones go into the first.

    METAL_EDGE_PLANS alone if it is set. Otherwise root writes where the daemon of a system
    service can read; others write into their own cache and read both.
    """
    named = environ.get(ROOT_VARIABLE)
    if named:
        return (Path(named),)
    if is_root:
        return (SHARED_ROOT,)
    own = environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    base = Path(own) if own and Path(own).is_absolute() else home / ".cache"
    return (base / "metal-edge" / "plans", SHARED_ROOT)


def describe_plan(
    key: PlanKey, content: bytes, created_utc: str, build: dict[str, Any]
) -> PlanManifest:
    """The manifest of a plan that was just built."""
    digest = hashlib.sha256(content).hexdigest()
    return PlanManifest(
        key=key, size=len(content), sha256=digest, created_utc=created_utc, build=build
    )


def check_plan(manifest: PlanManifest, key: PlanKey, content: bytes, where: Path) -> None:
    """Refuses a plan that is not whole, or was built for something else.

    TensorRT would only find out while deserialising, and not in these words.

    Raises:
        UnavailableError: names `where` and what differs.
    """
    for field, wanted in key.model_dump().items():
        found = getattr(manifest.key, field)
        if found != wanted:
            raise UnavailableError(
                f"{where} was built for {field.replace('_', ' ')} {found}, not {wanted}", _REBUILD
            )
    if len(content) != manifest.size:
        raise UnavailableError(
            f"{where} is truncated ({len(content)} of {manifest.size} bytes)", _REBUILD
        )
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise UnavailableError(
            f"{where} was changed after it was built (SHA-256 differs)", _REBUILD
        )


def read_plan(roots: Sequence[Path], key: PlanKey) -> CachedPlan:
    """The plan for `key`, verified.

    Raises:
        UnavailableError: there is none in any of `roots`, or it is damaged.
    """
    folder = find_plan(roots, key)
    if folder is None:
        searched = ", ".join(str(root) for root in roots)
        raise UnavailableError(
            f"no TensorRT plan for {key.described} in {searched}{_others(roots, key)}", _REBUILD
        )
    manifest = _read_manifest(folder)
    path = folder / PLAN
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"cannot read {path} ({error.strerror})", _REBUILD) from error
    check_plan(manifest, key, content, path)
    return CachedPlan(folder, manifest, content)


def find_plan(roots: Sequence[Path], key: PlanKey) -> Path | None:
    """The folder of `key` in the first root that has one, unread.

    Raises:
        UnavailableError: a root cannot be looked into.
    """
    for root in roots:
        folder = root / key.folder
        try:
            if (folder / MANIFEST).is_file():
                return folder
        except OSError as error:  # permissions above all; a missing folder is none
            raise UnavailableError(
                f"cannot look into {root} ({error.strerror})",
                f"make it readable for this user, or set {ROOT_VARIABLE}",
            ) from error
    return None


def write_plan(root: Path, manifest: PlanManifest, content: bytes, log: str) -> Path:
    """Writes plan, manifest and log as one folder; an old one is replaced whole.

    Raises:
        OutputError: the place cannot be written.
    """

    def fill(folder: Path) -> None:
        (folder / PLAN).write_bytes(content)
        (folder / LOG).write_text(log, encoding="utf-8")
        (folder / MANIFEST).write_text(
            json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n",
            encoding="utf-8",
        )

    destination = root / manifest.key.folder
    write_folder(destination, fill)
    return destination


def discard_plan(folder: Path) -> None:
    """Removes a plan that failed its golden images, so that the next build does not find it."""
    shutil.rmtree(folder, ignore_errors=True)


def timing_cache_path(root: Path, key: PlanKey) -> Path:
    """Where builds for this machine keep measured kernel times if nobody says otherwise."""
    return root / f"{re.sub(r'[^A-Za-z0-9.]+', '-', key.machine).strip('-')}.timing"


def _read_manifest(folder: Path) -> PlanManifest:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            return PlanManifest.model_validate_json(file.read(_MANIFEST_LIMIT))
    except OSError as error:
        raise UnavailableError(f"cannot read {path} ({error.strerror})", _REBUILD) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnavailableError(f"{path}: {where or 'file'}: {first['msg']}", _REBUILD) from error


def find_plans(roots: Sequence[Path], onnx_sha256: str) -> list[tuple[Path, PlanManifest]]:
    """All plans of one ONNX file, for whatever machine; those with a damaged manifest left out."""
    found = []
    for root in roots:
        for path in sorted(root.glob(f"{onnx_sha256[:12]}-*/{MANIFEST}")):
            try:
                manifest = _read_manifest(path.parent)
            except UnavailableError:
                continue  # a damaged neighbour says nothing about the plan that is asked for
            if manifest.key.onnx_sha256 == onnx_sha256:
                found.append((path.parent, manifest))
    return found


def _others(roots: Sequence[Path], key: PlanKey) -> str:
    """Which machines this model has plans for, if any: most often the version has moved on."""
    machines = {found.key.described for _, found in find_plans(roots, key.onnx_sha256)}
    return f" (there is one for {'; '.join(sorted(machines))})" if machines else ""


_REBUILD = (
    "build it on this machine with `metal-edge build-engine BUNDLE --backend tensorrt -o BUNDLE`"
)
