"""The log's two formats."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.observing.logs import JsonFormatter, TextFormatter, goes_to_journal


def record(message: str, *args: Any, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("room").makeRecord("room", level, "f.py", 1, message, args, None)
    vars(made).update(extra)
    return made


def failed() -> logging.LogRecord:
    made = record("it broke", level=logging.ERROR)
    try:
        raise ValueError("at rtsp://user:secret@camera/1")
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_a_json_line_has_what_was_given_as_fields() -> None:
    said = record("seq=%d", 7, seq=7, part_id="P-1", score=0.5, sent=True)
    said.threadName = "line press"
    found = json.loads(JsonFormatter().format(said))
    time = found.pop("time")
    assert time.endswith("Z")
    assert found == {
        "level": "INFO",
        "logger": "room",
        "message": "seq=7",
        "thread": "line press",
        "line": "press",
        "seq": 7,
        "part_id": "P-1",
        "score": 0.5,
        "sent": True,
    }


def test_an_exception_is_a_field_of_its_own() -> None:
    text = JsonFormatter().format(failed())
    assert "\n" not in text
    found = json.loads(text)
    assert found["message"] == "it broke"
    assert found["exception"].splitlines()[-1] == "ValueError: at rtsp://camera/1"


@pytest.mark.parametrize("password", ["secret", "a@secret"])
@pytest.mark.parametrize("kind", [JsonFormatter, TextFormatter])
def test_no_password_gets_out(kind: Any, password: str) -> None:
    address = f"rtsp://user:{password}@camera/1"
    made = failed()
    made.msg, made.args, made.uri = "cannot open %s", (address,), address
    text = kind().format(made)
    assert "secret" not in text
    assert "rtsp://camera/1" in text


@pytest.mark.parametrize(
    ("level", "mark"),
    [("CRITICAL", "<2>"), ("ERROR", "<3>"), ("WARNING", "<4>"), ("INFO", "<6>"), ("DEBUG", "<7>")],
)
def test_priorities(level: str, mark: str) -> None:
    said = record("word", level=getattr(logging, level))
    assert TextFormatter(prefix=True).format(said) == f"{mark}{level} room: word"
    assert JsonFormatter(prefix=True).format(said).startswith(mark + "{")
    assert TextFormatter().format(said) == f"{level} room: word"


def test_each_line_of_a_traceback_keeps_its_priority() -> None:
    lines = TextFormatter(prefix=True).format(failed()).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


@given(
    st.text(),
    st.dictionaries(
        st.text(min_size=1).map("x_{}".format),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    ),
)
def test_whatever_is_said_is_one_line_of_json(message: str, extra: dict[str, Any]) -> None:
    text = JsonFormatter().format(record("%s", message, **extra))
    assert len(text.splitlines()) == 1

    def refuse(word: str) -> None:
        raise ValueError(word)

    found = json.loads(text, parse_constant=refuse)
    assert found.keys() >= extra.keys()


def test_only_the_journals_own_socket_gets_priorities(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        here = f"{found.st_dev}:{found.st_ino}"
        assert goes_to_journal(stream, {"JOURNAL_STREAM": here})
        # A child whose stderr was redirected inherits the variable.
        assert not goes_to_journal(stream, {"JOURNAL_STREAM": f"{here}1"})
        assert not goes_to_journal(stream, {})
    assert not goes_to_journal(io.StringIO(), {"JOURNAL_STREAM": ""})
