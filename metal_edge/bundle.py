"""The deployable directory: one model, its thresholds, its golden images, and proof of all.

Layout::

    bundle/
      manifest.json      what this is, and the SHA-256 of every other file
      manifest.sha256    the SHA-256 of manifest.json, as sha256sum writes it
      model.onnx         uint8 NHWC in; anomaly_map float32 [N, h, w] and score float32 [N] out
      thresholds.json    the calibrated score threshold and the promise it carries
      golden/NNN.png     images at the model's input size
      golden/golden.json the score that each must give, and the tolerance

Bundles are written by `files.write_folder`: a reader sees the old one or the new one, never a
half.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metal_edge.domain import Preprocess
from metal_edge.errors import BundleError, MissingInputError

SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
MODEL = "model.onnx"
THRESHOLDS = "thresholds.json"
GOLDEN = "golden/golden.json"
_REBUILD = "build it again with `metal-edge build-engine`"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=_Record)


class Thresholds(_Record):
    """A part passes when its score is below `score`.

    `false_reject_rate` is what split conformal prediction guarantees with `calibration_images`
    held-out good images, scored by this very model file.
    """

    score: float = Field(allow_inf_nan=False)
    false_reject_rate: float = Field(gt=0, lt=1)
    calibration_images: int = Field(gt=0)
    method: Literal["split-conformal"] = "split-conformal"


class GoldenImage(_Record):
    """One stored image (at model input size) and the score it must give."""

    file: str
    score: float = Field(allow_inf_nan=False)
    good: bool


class Golden(_Record):
    """Golden images; a runner agrees when every |score - expected| <= tolerance."""

    tolerance: float = Field(gt=0, allow_inf_nan=False)
    images: tuple[GoldenImage, ...] = Field(min_length=1)


class FileEntry(_Record):
    """Size in bytes and SHA-256 of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Record):
    """What the bundle is, and the digest of each file in it."""

    schema_version: Literal[1] = SCHEMA
    name: str
    version: str
    created_utc: str
    model: dict[str, Any]
    precision: Literal["fp32", "fp16", "int8"]
    backend: Literal["onnxruntime", "tensorrt"]
    preprocess: Preprocess
    provenance: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileEntry]


class Bundle:
    """A bundle on disk whose hashes were verified when it was opened."""

    def __init__(
        self, path: Path, manifest: Manifest, thresholds: Thresholds, golden: Golden, digest: str
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.thresholds = thresholds
        self.golden = golden
        self.digest = digest  # SHA-256 of manifest.json, which covers every other file

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Reads and verifies a bundle.

        Raises:
            MissingInputError: `path` is no bundle directory.
            BundleError: a file is missing, extra, or changed; names the file.
        """
        if path.is_file():
            raise MissingInputError(
                f"{path} is a file, not a bundle", "name the folder that `build-engine` wrote"
            )
        manifest_path = path / MANIFEST
        if not manifest_path.is_file():
            raise MissingInputError(f"{path} is not a bundle (no {MANIFEST})", _REBUILD)
        raw = manifest_path.read_bytes()
        _check_seal(path, raw)
        manifest = _parse(Manifest, raw, manifest_path)
        verify_files(path, manifest)
        return cls(
            path,
            manifest,
            _parse(Thresholds, (path / THRESHOLDS).read_bytes(), path / THRESHOLDS),
            _parse(Golden, (path / GOLDEN).read_bytes(), path / GOLDEN),
            hashlib.sha256(raw).hexdigest(),
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json and its seal; the last step of filling a bundle's folder."""
    raw = to_json(manifest).encode("utf-8")
    (folder / MANIFEST).write_bytes(raw)
    (folder / SEAL).write_text(_seal_of(raw), encoding="ascii")


def _seal_of(manifest: bytes) -> str:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"


def _check_seal(path: Path, manifest: bytes) -> None:
    """A flipped bit in the manifest could move the crop or the model's version unnoticed."""
    if not (path / SEAL).is_file():
        raise BundleError(f"{path / SEAL} is missing", _REBUILD)
    if (path / SEAL).read_bytes() != _seal_of(manifest).encode("ascii"):
        raise BundleError(
            f"{path / MANIFEST} was changed after the bundle was built (SHA-256 differs from"
            f" {SEAL})",
            "copy the bundle again, or " + _REBUILD,
        )


def _parse(kind: type[RecordT], raw: bytes, path: Path) -> RecordT:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {key or 'file'}: {first['msg']}", _REBUILD) from error


def verify_files(path: Path, manifest: Manifest) -> None:
    """Checks every file's size and SHA-256, and that none is missing or extra.

    Raises:
        BundleError: names the first file that differs.
    """
    required = {MODEL, THRESHOLDS, GOLDEN}
    missing = sorted(required - manifest.files.keys())
    if missing:
        raise BundleError(f"{path / MANIFEST} does not list {missing[0]}", _REBUILD)
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    extra = sorted(present - manifest.files.keys() - {MANIFEST, SEAL})
    if extra:
        raise BundleError(f"{path / extra[0]} is not in the manifest", "remove it, or " + _REBUILD)
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise BundleError(f"{path / name} is missing", _REBUILD)
        file = path / name
        if file.stat().st_size != entry.size or sha256_of(file) != entry.sha256:
            raise BundleError(
                f"{file} was changed after the bundle was built (SHA-256 differs)",
                "copy the bundle again, or " + _REBUILD,
            )


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(path: Path) -> dict[str, FileEntry]:
    """FileEntry of every file below `path` but the manifest and its seal."""
    return {
        p.relative_to(path).as_posix(): FileEntry(size=p.stat().st_size, sha256=sha256_of(p))
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in {MANIFEST, SEAL}
    }


def to_json(record: BaseModel | dict[str, Any]) -> str:
    """Stable, readable JSON with a final newline."""
    data = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
