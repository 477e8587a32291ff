"""Finding and loading the plugin library, with a stand-in of TensorRT's registry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import LIBRARY_MARK, FakeTensorRt

from metal_edge.errors import UnavailableError
from metal_edge.runtime import plugin
from metal_edge.runtime.plugin import Plugin, find_plugin, load_plugin

GOOD = f"{LIBRARY_MARK} MaskedAttention 1"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Two places, both empty, in a process that has loaded nothing."""
    found = (tmp_path / "local.so", tmp_path / "system.so")
    monkeypatch.setattr(plugin, "PLACES", found)
    monkeypatch.setattr(plugin, "_loaded", [])
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    return found


@pytest.fixture
def trt() -> FakeTensorRt:
    return FakeTensorRt(FakeCuda)


def test_the_variable_comes_first_then_the_places_in_order(
    places: tuple[Path, ...], tmp_path: Path
) -> None:
    assert find_plugin({}) is None
    named = tmp_path / "own.so"
    for path in (places[1], places[0], named):
        path.write_text(path.name)
        digest = hashlib.sha256(path.name.encode()).hexdigest()
        environ = {plugin.VARIABLE: str(named)} if path is named else {}
        assert find_plugin(environ) == Plugin(path, digest)
    assert find_plugin({plugin.VARIABLE: ""}) == find_plugin({})


def test_a_named_library_that_is_not_there_is_not_replaced_by_another(
    places: tuple[Path, ...], tmp_path: Path
) -> None:
    places[0].write_text("installed")
    with pytest.raises(UnavailableError, match=r"typo\.so cannot be read .*METAL_EDGE_PLUGIN"):
        find_plugin({plugin.VARIABLE: str(tmp_path / "typo.so")})


def test_it_is_loaded_once(places: tuple[Path, ...], trt: FakeTensorRt) -> None:
    places[1].write_text(GOOD)
    assert load_plugin(trt) == load_plugin(trt) == find_plugin({})
    assert trt.registry.loaded == [str(places[1])]


def test_none(places: tuple[Path, ...], trt: FakeTensorRt) -> None:
    with pytest.raises(UnavailableError, match=r"local\.so, .*system\.so.*--attention native"):
        load_plugin(trt)
    assert trt.registry.loaded == []


def test_a_library_that_changed_under_a_running_process(
    places: tuple[Path, ...], trt: FakeTensorRt
) -> None:
    places[0].write_text(GOOD)
    load_plugin(trt)
    places[0].write_text(GOOD + " Another 1")
    with pytest.raises(UnavailableError, match="start the process again"):
        load_plugin(trt)


@pytest.mark.parametrize(
    ("content", "words"),
    [("text", "cannot load the plugin"), (f"{LIBRARY_MARK} MaskedAttention 2", "of version 1")],
)
def test_a_library_that_does_not_fit_is_let_go(
    places: tuple[Path, ...], trt: FakeTensorRt, content: str, words: str
) -> None:
    places[0].write_text(content)
    for _ in range(2):  # it is not taken for loaded
        with pytest.raises(UnavailableError, match=words):
            load_plugin(trt)
    assert trt.registry.creators == set()


def test_the_bindings_own_error_is_passed_on(
    places: tuple[Path, ...], trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str) -> None:
        raise RuntimeError("undefined symbol: cudaLaunchKernel")

    places[0].write_text(GOOD)
    monkeypatch.setattr(trt.registry, "load_library", fails)
    with pytest.raises(UnavailableError, match="undefined symbol: cudaLaunchKernel"):
        load_plugin(trt)
