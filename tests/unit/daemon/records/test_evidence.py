"""Pictures on real disks: what can be found again, what gives way, what a broken disk costs."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.broker import wait_until
from support.small_disk import small_disk

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.records.evidence import INDEX, Case, EvidenceStore, place_of
from metal_edge.daemon.records.evidence_index import find
from metal_edge.daemon.records.evidence_pictures import (
    OVERLAY_LONGEST,
    Shown,
    decode_map,
    encode_frame,
    encode_map,
    encode_overlay,
)
from metal_edge.daemon.records.storage import Limits
from metal_edge.domain import Region

LIMITS = Limits(10**15, 10**8)
Make = Callable[..., EvidenceStore]


class Clock(SystemClock):
    """The machine's, put forward by hand."""

    ahead_ns = 0

    def mono_ns(self) -> int:
        return super().mono_ns() + self.ahead_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    made: list[EvidenceStore] = []

    def run(path: Path = tmp_path / "evidence", limits: Limits = LIMITS, **more: Any) -> Any:
        more.setdefault("free_bytes", 0)
        made.append(EvidenceStore(path, limits, clock, **more))
        made[-1].start()
        return made[-1]

    yield run
    for store in made:
        store.close(10)


def shown(seed: int = 0, camera_id: str = "camera", size: int = 40) -> Shown:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (size, size + 7, 3), dtype=np.uint8)
    heat = random.random((10, 12), dtype=np.float32)
    return Shown(camera_id, image, heat, (3, 2, 30, 25), 0.5, (Region(4, 5, 8, 6, 30, 0.9),))


def case(number: int, part_id: str | None = None, *views: Shown) -> Case:
    decision = {
        "event_id": f"event-{number}",
        "part_id": part_id,
        "trigger_id": f"t{number}",
        "verdict": "reject",
        "reason": "score_at_or_above_threshold",
        "t_publish_ns": 1_700_000_000_000_000_000 + number,
    }
    return Case(decision, views or (shown(number),))


def keep(store: EvidenceStore, one: Case) -> dict[str, Any] | None:
    """Offers, and waits for the answer."""
    answers: list[dict[str, Any] | None] = []
    store.offer(one, answers.append)
    wait_until(lambda: answers, "an answer about the pictures")
    (answer,) = answers
    return answer


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("??/??/*")}


def test_a_part_is_found_again_with_its_picture_bit_for_bit(make: Make, tmp_path: Path) -> None:
    store = make()
    for number, part in enumerate(["p1", "p2", "p1"]):
        keep(store, case(number, part))
    folder = tmp_path / "evidence"
    looks = list(find(folder / INDEX, part_id="p1"))
    assert [look.event_id for look in looks] == ["event-2", "event-0"]
    assert looks[0].raw is not None
    file = place_of(folder, looks[0].raw)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    assert (np.asarray(PIL.Image.open(file)) == shown(2).image).all()
    late = find(folder / INDEX, since_ns=looks[0].t_ns)
    assert [look.event_id for look in late] == ["event-2"]


def test_what_the_event_says_lies_on_the_disk(make: Make, tmp_path: Path) -> None:
    answer = keep(make(), case(1))
    assert answer is not None
    assert set(answer) == {"raw", "map", "overlay"}
    endings = {"raw": ".png", "map": ".png", "overlay": ".jpg"}
    for kind, digest in answer.items():
        content = place_of(tmp_path / "evidence", digest + endings[kind]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_several_views_each_have_their_pictures(make: Make, tmp_path: Path) -> None:
    one = case(1, "p", shown(1, "left"), shown(2, "right"))
    answer = keep(make(), one)
    assert answer is not None
    assert set(answer["views"]) == {"left", "right"}
    assert answer["raw"] == answer["views"]["left"]["raw"] != answer["views"]["right"]["raw"]
    looks = list(find(tmp_path / "evidence" / INDEX))
    assert {look.camera_id for look in looks} == {"left", "right"}


@pytest.mark.parametrize("part", ["../../etc/passwd", "a/b", "", "\0", "'; DROP TABLE looks; --"])
def test_a_part_id_never_becomes_a_path(make: Make, tmp_path: Path, part: str) -> None:
    keep(make(), case(1, part))
    assert [look.part_id for look in find(tmp_path / "evidence" / INDEX, part_id=part)] == [part]
    names = pictures(tmp_path / "evidence")
    assert {len(Path(name).stem) for name in names} == {64}
    everything = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert {n for n in everything if not n.startswith(INDEX)} == names


def test_the_same_picture_lies_there_once_and_goes_with_the_last(
    make: Make, tmp_path: Path
) -> None:
    store = make(limits=Limits(10**15, 9_000))
    same = shown(7)
    keep(store, case(1, "a", same))
    first = pictures(tmp_path / "evidence")
    keep(store, case(2, "b", same))
    assert pictures(tmp_path / "evidence") == first
    # Each part needs about 8 kB: the next ones push the two out, one after the other.
    keep(store, case(3))
    keep(store, case(4))
    left = {look.trigger_id for look in find(tmp_path / "evidence" / INDEX)}
    assert "t1" not in left
    assert (pictures(tmp_path / "evidence") & first == first) == ("t2" in left)
    keep(store, case(5))
    assert pictures(tmp_path / "evidence") & first == set()


def test_the_oldest_give_way_by_size(make: Make, tmp_path: Path) -> None:
    store = make(limits=Limits(10**15, 40_000))
    for number in range(12):
        keep(store, case(number))
    numbers = [int(look.trigger_id[1:]) for look in find(tmp_path / "evidence" / INDEX)]
    assert numbers == list(range(11, 11 - len(numbers), -1))
    assert 2 <= len(numbers) < 12
    on_disk = set((tmp_path / "evidence").glob("??/??/*"))
    # One part may come on top: room is made before it is written.
    assert sum(path.stat().st_size for path in on_disk) < 40_000 + 12_000
    named = {name for look in find(tmp_path / "evidence" / INDEX) for name in look.names()}
    assert {path.name for path in on_disk} == named


def test_the_oldest_give_way_by_age(make: Make, tmp_path: Path, clock: Clock) -> None:
    store = make(limits=Limits(3600 * 10**9, 10**8))
    keep(store, case(1))
    clock.ahead_ns += 4000 * 10**9
    keep(store, case(2))
    assert [look.trigger_id for look in find(tmp_path / "evidence" / INDEX)] == ["t2"]
    assert len(pictures(tmp_path / "evidence")) == 3


def test_pictures_that_come_too_fast_are_left_out_and_counted(make: Make) -> None:
    """The thread is held in the answer to the first; two more may wait."""
    store = make(queue=2)
    hold, held = threading.Event(), threading.Event()

    def slow(answer: object) -> None:
        held.set()
        hold.wait(10)

    store.offer(case(0), slow)
    assert held.wait(10)
    answers: list[Any] = []
    for number in range(1, 6):
        store.offer(case(number), answers.append)
    assert answers == [None, None, None]
    stats = store.stats()
    assert (stats.waiting, stats.left_out) == (2, 3)
    assert stats.problem == "pictures come too fast"
    hold.set()
    wait_until(lambda: len(answers) == 5, "the other two")
    assert None not in answers[3:]
    assert store.stats().problem is None


def test_a_store_that_ends_tells_everybody(make: Make, clock: Clock) -> None:
    store = make(queue=5)
    answers: list[Any] = []
    for number in range(5):
        store.offer(case(number), answers.append)
    store.close(10)
    assert len(answers) == 5
    store.offer(case(9), answers.append)
    assert answers[5:] == [None]


def test_a_nearly_full_disk_is_left_alone(make: Make, tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    store = make(free_bytes=2 * disk.f_blocks * disk.f_frsize)
    assert keep(store, case(1)) is None
    assert store.stats().problem == "disk nearly full"
    assert pictures(tmp_path / "evidence") == set()


def test_a_disk_that_is_full_costs_pictures_and_heals(make: Make, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "400k") as folder:
        store = make(folder)
        # The frame still fits, but not its map.
        frame, heat = shown(1, size=250).image, np.random.default_rng(1).random((400, 400))
        large = Case(case(1).decision, (Shown("c", frame, heat.astype(np.float32)),))
        assert keep(store, large) is None
        assert store.stats().problem in ("no space left on device", "disk full")
        assert keep(store, case(2)) is not None
        assert [look.trigger_id for look in find(folder / INDEX)] == ["t2"]
        assert len(pictures(folder)) == 3, "half of a part was left behind"


def test_a_damaged_index_is_put_aside_and_its_pictures_still_age(
    make: Make, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "evidence"
    store = make()
    keep(store, case(1))
    store.close(10)
    old = pictures(folder)
    (folder / INDEX).write_bytes(b"this is no database\n" * 1000)
    second = make(limits=Limits(3600 * 10**9, 10**8))
    assert keep(second, case(2)) is None
    assert second.stats().problem is not None
    assert keep(second, case(3)) is not None
    assert len(list(folder.glob(f"{INDEX}.damaged-*"))) == 1
    assert old < pictures(folder)
    clock.ahead_ns += 4000 * 10**9
    keep(second, case(4))
    assert len(pictures(folder)) == 3


def test_what_a_crash_left_half_done_is_cleaned_up(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    store = make()
    keep(store, case(1))
    store.close(10)
    lost = folder / "ab" / "cd"
    lost.mkdir(parents=True)
    (lost / ("abcd" + "0" * 60 + ".png")).write_bytes(b"written, but not in the index")
    (lost / ".half.png.123.partial").write_bytes(b"half")
    keep(make(), case(2))
    assert not (lost / ".half.png.123.partial").exists()
    known = {name for look in find(folder / INDEX) for name in look.names()}
    assert known == pictures(folder)


def test_one_folder_has_one_owner(make: Make) -> None:
    keep(make(), case(1))
    second = make()
    assert keep(second, case(2)) is None
    assert second.stats().problem == "held by another process"


def test_a_frame_comes_back_bit_for_bit() -> None:
    image = shown(3).image
    assert (np.asarray(PIL.Image.open(io.BytesIO(encode_frame(image)))) == image).all()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_a_map_comes_back_within_half_a_level(values: np.ndarray) -> None:
    data = encode_map(values)
    assert data is not None
    back = decode_map(data)
    half = float(values.max() - values.min()) / 65535 / 2
    rounding = np.spacing(np.abs(values).max())
    assert np.abs(back - values).max() <= half + rounding


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_map_with_numbers_that_are_none_is_not_drawn(bad: float) -> None:
    heat = np.array([[0, bad]], np.float32)
    assert encode_map(heat) is None


def test_an_ordinary_png_is_no_map() -> None:
    with pytest.raises(ValueError, match="no anomaly map"):
        decode_map(encode_frame(shown().image))


def test_the_overlay_shows_heat_and_boxes_where_they_are() -> None:
    image = np.full((2000, 3000, 3), 40, np.uint8)
    heat = np.zeros((50, 50), np.float32)
    heat[:25, :25] = 1.0
    region = Region(1000, 500, 500, 500, 100, 1.0)
    data = encode_overlay(Shown("c", image, heat, (1000, 500, 1000, 1000), 0.5, (region,)))
    assert data is not None
    picture = np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)
    assert max(picture.shape) == OVERLAY_LONGEST
    ratio = OVERLAY_LONGEST / 3000
    hot = picture[round(750 * ratio), round(1250 * ratio)]
    cold = picture[round(1250 * ratio), round(1750 * ratio)]
    outside = picture[round(250 * ratio), round(500 * ratio)]
    assert hot.max() > 150
    assert np.abs(outside - 40).max() < 8
    assert cold.max() < 60
    corner = picture[round(500 * ratio), round(1250 * ratio)]
    assert corner.min() > 150, "no box"
    assert (image == 40).all(), "the frame itself was drawn on"


@pytest.mark.parametrize("threshold", [None, 0.0, -1.0, np.nan, np.inf])
def test_without_a_scale_there_is_no_overlay(threshold: float | None) -> None:
    one = shown()
    assert encode_overlay(Shown("c", one.image, one.anomaly_map, None, threshold)) is None


def test_the_index_cannot_be_asked_for_sql(make: Make, tmp_path: Path) -> None:
    keep(make(), case(1, "p"))
    index = tmp_path / "evidence" / INDEX
    assert list(find(index, part_id="' OR 1=1 --")) == []
    with pytest.raises(sqlite3.Error):
        next(find(tmp_path / "nothing" / INDEX))
