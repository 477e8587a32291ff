"""What needs no Aravis: the counter, and what is said where the library is missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras import CameraError, create_camera
from metal_edge.daemon.cameras.aravis import BlockCounter
from metal_edge.daemon.clock import SystemClock
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings


@given(start=st.integers(1, 65535), gaps=st.lists(st.integers(1, 300), max_size=400))
def test_the_counter_goes_on_where_16_bits_begin_again(start: int, gaps: list[int]) -> None:
    """GigE Vision: after 65535 comes 1. Lost frames are missing on both sides of the step."""
    counter, true = BlockCounter(), start
    first = counter.number((true - 1) % 65535 + 1)
    for gap in gaps:
        true += gap
        assert counter.number((true - 1) % 65535 + 1) - first == true - start


@given(numbers=st.lists(st.integers(65536, 2**40), unique=True).map(sorted))
def test_a_counter_of_64_bits_is_as_it_is(numbers: list[int]) -> None:
    counter = BlockCounter()
    assert [counter.number(number) for number in numbers] == numbers


@pytest.mark.parametrize(
    ("kind", "options", "missing", "message"),
    [
        ("aravis", {}, "gi", r"PyGObject.*apt install python3-gi gir1\.2-aravis-0\.8"),
        ("csi", {}, "gi", r"PyGObject.*gir1\.2-gstreamer-1\.0.*docs/cameras\.md"),
        ("gstreamer", {"pipeline": "videotestsrc"}, "gi", r"PyGObject"),
        ("pylon", {}, "pypylon", r"pypylon.*pip install 'metal-edge\[pylon\]'"),
    ],
)
def test_a_missing_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: Any, missing: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    settings = CameraSettings(kind=kind, uri="", options=options)
    with pytest.raises(CameraError, match=message):
        create_camera(settings, SystemClock()).open()


@pytest.mark.parametrize("kind", ["aravis", "pylon"])
def test_a_wired_trigger_needs_a_wire(kind: str) -> None:
    with pytest.raises(SettingsError, match="trigger_source"):
        create_camera(CameraSettings(kind=kind, mode="hardware"), SystemClock())
