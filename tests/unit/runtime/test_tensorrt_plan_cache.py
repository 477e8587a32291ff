"""Cached plans: one key, one plan; anything damaged or foreign is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.errors import UnavailableError
from metal_edge.runtime.plan_cache import (
    LOG,
    MANIFEST,
    PLAN,
    SHARED_ROOT,
    PlanKey,
    describe_plan,
    plan_roots,
    read_plan,
    timing_cache_path,
    write_plan,
)

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text(min_size=1, max_size=12)
COMPONENTS: dict[str, st.SearchStrategy[Any]] = {
    "onnx_sha256": DIGESTS,
    "tensorrt": NAMES,
    "gpu": NAMES,
    "compute_capability": st.builds("{}.{}".format, st.integers(5, 12), st.integers(0, 9)),
    "plugin_sha256": st.none() | DIGESTS,
    "max_batch": st.integers(1, 64),
}
KEYS = st.builds(PlanKey, **COMPONENTS)
KEY = PlanKey(onnx_sha256="a" * 64, tensorrt="10.3.0", gpu="Orin", compute_capability="8.7")
OTHER = {
    "onnx_sha256": "b" * 64,
    "tensorrt": "10.16.2",
    "gpu": "Orin (nvgpu)",
    "compute_capability": "11.0",
    "plugin_sha256": "c" * 64,
    "max_batch": 1,
}


def write(root: Path, key: PlanKey = KEY, content: bytes = b"plan") -> Path:
    manifest = describe_plan(key, content, "2026-01-01T00:00:00+00:00", {"seconds": 1.0})
    return write_plan(root, manifest, content, "INFO built\n")


@given(key=KEYS, data=st.data())
def test_any_component_changed_is_another_plan(key: PlanKey, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(COMPONENTS)))
    value = data.draw(COMPONENTS[field].filter(lambda v: v != getattr(key, field)))
    assert key.model_copy(update={field: value}).folder != key.folder


@given(key=KEYS)
def test_the_same_key_is_the_same_folder_of_plain_characters(key: PlanKey) -> None:
    assert PlanKey.model_validate_json(key.model_dump_json()).folder == key.folder
    assert set(key.folder) <= set("0123456789abcdef-")
    assert Path(timing_cache_path(Path("/r"), key)).parent == Path("/r")


def test_components_do_not_run_into_each_other() -> None:
    one = KEY.model_copy(update={"tensorrt": "10", "gpu": "3Orin"})
    two = KEY.model_copy(update={"tensorrt": "103", "gpu": "Orin"})
    assert one.folder != two.folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    plan = read_plan((tmp_path / "none", tmp_path), KEY)
    assert (plan.content, plan.folder, plan.manifest.key) == (b"plan", folder, KEY)
    assert {p.name for p in folder.iterdir()} == {PLAN, MANIFEST, LOG}
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    write(tmp_path, content=b"newer")
    assert read_plan((tmp_path,), KEY).content == b"newer"


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_truncated_plan_is_refused(tmp_path: Path, kept: int) -> None:
    folder = write(tmp_path)
    (folder / PLAN).write_bytes(b"plan"[:kept])
    with pytest.raises(UnavailableError, match=rf"truncated \({kept} of 4 bytes\).*build-engine"):
        read_plan((tmp_path,), KEY)


@pytest.mark.parametrize("file", [PLAN, MANIFEST])
def test_a_missing_file_is_refused(tmp_path: Path, file: str) -> None:
    (write(tmp_path) / file).unlink()
    with pytest.raises(UnavailableError, match="build-engine"):
        read_plan((tmp_path,), KEY)


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    (write(tmp_path) / PLAN).write_bytes(b"plaM")
    with pytest.raises(UnavailableError, match="SHA-256"):
        read_plan((tmp_path,), KEY)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 2}', b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path) / MANIFEST).write_bytes(content)
    with pytest.raises(UnavailableError, match=MANIFEST):
        read_plan((tmp_path,), KEY)


@pytest.mark.parametrize("field", sorted(OTHER))
def test_a_plan_of_another_machine_is_refused(tmp_path: Path, field: str) -> None:
    """Also when somebody moved it to where this machine's plan would lie."""
    foreign = KEY.model_copy(update={field: OTHER[field]})
    folder = write(tmp_path, foreign)
    with pytest.raises(UnavailableError, match="no TensorRT plan for Orin"):
        read_plan((tmp_path,), KEY)
    shutil.move(folder, tmp_path / KEY.folder)
    with pytest.raises(UnavailableError, match=f"built for {field.replace('_', ' ')}"):
        read_plan((tmp_path,), KEY)


def test_a_cache_that_cannot_be_looked_into(tmp_path: Path) -> None:
    """Root may read anything, so a name that no file system takes stands for permissions."""
    write(tmp_path)
    with pytest.raises(UnavailableError, match=r"cannot look into .*METAL_EDGE_PLANS"):
        read_plan((tmp_path / ("x" * 300), tmp_path), KEY)


def test_the_error_names_the_version_that_there_is(tmp_path: Path) -> None:
    write(tmp_path, KEY.model_copy(update={"tensorrt": "10.16.2"}))
    write(tmp_path, KEY.model_copy(update={"onnx_sha256": "a" * 12 + "b" * 52, "gpu": "Thor"}))
    with pytest.raises(UnavailableError, match=r"for Orin \(sm 8.7\), TensorRT 10.16.2") as caught:
        read_plan((tmp_path,), KEY)
    assert "Thor" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "is_root", "expected"),
    [
        ({}, True, (SHARED_ROOT,)),
        ({}, False, (Path("/home/a/.cache/metal-edge/plans"), SHARED_ROOT)),
        ({"XDG_CACHE_HOME": "/x"}, False, (Path("/x/metal-edge/plans"), SHARED_ROOT)),
        (
            {"XDG_CACHE_HOME": "relative"},
            False,
            (Path("/home/a/.cache/metal-edge/plans"), SHARED_ROOT),
        ),
        ({"METAL_EDGE_PLANS": "/p", "XDG_CACHE_HOME": "/x"}, False, (Path("/p"),)),
        ({"METAL_EDGE_PLANS": "/p"}, True, (Path("/p"),)),
    ],
)
def test_where_plans_lie(
    environ: dict[str, str], is_root: bool, expected: tuple[Path, ...]
) -> None:
    assert plan_roots(environ, Path("/home/a"), is_root) == expected
