"""Files written by OpenCV, cut off anywhere."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metal_edge.daemon.cameras.video_file import is_cut_off

KINDS = {"avi": "MJPG", "mp4": "mp4v", "mov": "mp4v"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(1)
    for suffix, codec in KINDS.items():
        path = folder / f"whole.{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
        for _ in range(4):
            writer.write(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        writer.release()
        assert path.stat().st_size > 1000
    return {suffix: folder / f"whole.{suffix}" for suffix in KINDS}


@pytest.mark.parametrize("suffix", KINDS)
def test_a_whole_file_is_whole(videos: dict[str, Path], suffix: str) -> None:
    assert not is_cut_off(videos[suffix])


@pytest.mark.parametrize("suffix", KINDS)
@given(share=st.floats(0.01, 0.999))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_cut_off(
    videos: dict[str, Path], tmp_path: Path, suffix: str, share: float
) -> None:
    """Between two boxes nothing is missing that can be seen; the movie's index then is."""
    data = videos[suffix].read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: max(9, int(len(data) * share))])
    assert is_cut_off(cut) or not cv2.VideoCapture(str(cut), cv2.CAP_FFMPEG).isOpened()


@given(data=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_get_an_answer(tmp_path: Path, data: bytes) -> None:
    for head in (b"", b"RIFF", b"\0\0\0\1mdat"):
        (tmp_path / "x").write_bytes(head + data)
        assert is_cut_off(tmp_path / "x") in {True, False}


def test_a_box_that_reaches_to_the_end_and_one_with_a_long_size(tmp_path: Path) -> None:
    first = (16).to_bytes(4, "big") + b"ftyp" + bytes(8)
    (tmp_path / "open").write_bytes(first + bytes(4) + b"mdat" + bytes(99))
    assert not is_cut_off(tmp_path / "open")
    long = first + (1).to_bytes(4, "big") + b"mdat" + (16 + 5).to_bytes(8, "big") + bytes(5)
    (tmp_path / "long").write_bytes(long)
    assert not is_cut_off(tmp_path / "long")
    (tmp_path / "long").write_bytes(long[:-1])
    assert is_cut_off(tmp_path / "long")


def test_a_large_avi_has_several_chunks_each_filled_up_to_an_even_size(tmp_path: Path) -> None:
    chunk = b"RIFF" + (5).to_bytes(4, "little") + bytes(5)
    (tmp_path / "x").write_bytes(chunk + b"\0" + chunk + b"\0")
    assert not is_cut_off(tmp_path / "x")
    (tmp_path / "x").write_bytes(chunk + b"\0" + chunk[:-1])
    assert is_cut_off(tmp_path / "x")
