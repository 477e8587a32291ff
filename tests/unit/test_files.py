"""Whole or not at all, for files and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metal_edge.errors import OutputError
from metal_edge.files import atomic_file, remove_leftovers, write_folder, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_file(target) as staging:
            staging.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert list(target.parent.iterdir()) == [target]


def test_a_place_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "f" / "a.txt", "x")


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write_folder(target, lambda folder: write_text(folder / "a", "old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write_folder(target, lambda folder: write_text(folder / "a", "old"))
    write_folder(target, lambda folder: write_text(folder / "b", "new"))
    assert [p.name for p in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def dead_process() -> int:
    """The number of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_leftovers_of_dead_processes_go_and_all_else_stays(tmp_path: Path) -> None:
    target, dead = tmp_path / "b.bundle", dead_process()
    write_folder(target, lambda folder: write_text(folder / "a", "current"))
    for name in (f".b.bundle.{dead}.partial", f".b.bundle.{dead}.old"):
        write_text(tmp_path / name / "half", "x")
    others = [
        f".b.bundle.{os.getpid()}.partial",  # somebody is writing it
        f".c.bundle.{dead}.partial",
        f"b.bundle.{dead}.partial",
        ".b.bundle.notes.partial",
    ]
    for name in others:
        write_text(tmp_path / name / "half", "x")
    remove_leftovers(target)
    assert {p.name for p in tmp_path.iterdir()} == {"b.bundle", *others}
    assert (target / "a").read_text() == "current"


def test_a_result_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "b"
    write_text(tmp_path / f".b.{dead_process()}.old" / "a", "older")
    remove_leftovers(target)
    assert (target / "a").read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_no_folder_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "none" / "b")
    assert not list(tmp_path.iterdir())
