"""The session in the README gives what it says."""

from __future__ import annotations

import doctest

import pytest

from tools.kernels import build

README = build.ROOT / "tools" / "ptx" / "README.md"


def test_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        build.find_nvcc()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(build.ROOT)
    failures, tried = doctest.testfile(str(README), module_relative=False)
    assert tried > 8
    assert failures == 0
