"""Builds are cached by what they were made from, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.kernels import build

TINY = 'extern "C" int answer() { return NUMBER; }\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "number.h").write_text("#define NUMBER 42\n")
    path = tmp_path / "tiny.cpp"
    path.write_text('#include "number.h"\n' + TINY)
    try:
        build.find_gxx()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    return path


def test_nothing_is_built_twice(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = build.host_library([source], cache=cache)
    stamp = first.stat().st_mtime_ns
    assert build.host_library([source], cache=cache) == first
    assert first.stat().st_mtime_ns == stamp
    assert not [path for path in cache.iterdir() if path.is_dir()], "temporary folders are left"


def edit_source(source: Path) -> dict[str, object]:
    source.write_text(source.read_text() + "// changed\n")
    return {}


def edit_header(source: Path) -> dict[str, object]:
    source.with_name("number.h").write_text("#define NUMBER 43\n")
    return {}


@pytest.mark.parametrize(
    "change",
    [
        edit_source,
        edit_header,
        lambda _: {"defines": {"UNUSED": 1}},
        lambda _: {"sanitizer": "address"},
        lambda _: {"sanitizer": "thread"},
    ],
    ids=["source", "header", "macro", "address", "thread"],
)
def test_whatever_matters_makes_another(
    source: Path, tmp_path: Path, change: Callable[[Path], dict[str, object]]
) -> None:
    cache = tmp_path / "cache"
    before = build.host_library([source], cache=cache)
    after = build.host_library([source], cache=cache, **change(source))  # type: ignore[arg-type]
    assert after != before
    assert before.exists()


def test_a_folder_of_altered_headers_comes_first(source: Path, tmp_path: Path) -> None:
    """So that a header can be replaced without touching the sources."""
    using = tmp_path / "using.cpp"
    using.write_text('#include "half.hpp"\nint bits() { return sizeof(simt::Half); }\n')
    altered = tmp_path / "altered"
    altered.mkdir()
    (altered / "half.hpp").write_text("namespace simt { struct Half { long bits; }; }\n")
    cache = tmp_path / "cache"
    plain = build.host_library([using], cache=cache)
    assert build.host_library([using], includes=[altered], cache=cache) != plain


def test_what_the_compiler_says_is_passed_on(source: Path, tmp_path: Path) -> None:
    source.write_text("int broken() { return undeclared; }\n")
    with pytest.raises(build.BuildError, match=r"tiny\.cpp does not build(.|\n)*undeclared"):
        build.host_library([source], cache=tmp_path / "cache")


def test_warnings_are_errors(source: Path, tmp_path: Path) -> None:
    source.write_text("int unused(int argument) { return 0; }\n")
    with pytest.raises(build.BuildError, match="unused parameter"):
        build.host_library([source], cache=tmp_path / "cache")


@pytest.mark.parametrize(("find", "tool"), [(build.find_gxx, r"g\+\+"), (build.find_nvcc, "nvcc")])
def test_a_missing_tool_is_named(
    find: Callable[[], Path], tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)  # no such program anywhere
    with pytest.raises(build.MissingToolError, match=f"^{tool} is.*install"):
        find()


def test_device_code_of_every_kind(tmp_path: Path) -> None:
    source = Path(__file__).with_name("vector_add.cu")
    try:
        text = build.ptx(source, "sm_87", line_info=True, cache=tmp_path).read_text()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    assert ".visible .entry vector_add(" in text
    assert ".loc" in text
    assert build.cubin(source, "sm_110", cache=tmp_path).read_bytes().startswith(b"\x7fELF")
    report = build.ptxas_report(source, "sm_87", cache=tmp_path)
    assert report["vector_add"].registers > 0
    assert report["vector_add"].spill_stores == 0


def test_ptxas_reports() -> None:
    text = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_87'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 384 bytes cmem[0]
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function 'second' for 'sm_87'
ptxas info    : Function properties for second
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 24 bytes cumulative stack size, 512 bytes smem
"""
    assert build.parse_ptxas(text) == {
        "first": build.Resources(38, 0, 0, 0, 0),
        "second": build.Resources(255, 20, 16, 24, 512),
    }
