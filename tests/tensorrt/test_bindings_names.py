"""Every TensorRT name that the code uses exists in the real bindings of each supported version;
and what those bindings do where TensorRT creates nothing is told in words."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

import metal_edge
from tools.tensorrt.bindings import Answer, ask, refusals
from tools.tensorrt.names import Uses, defined_in, sources_below, uses_in
from tools.tensorrt.stubs import NoCompilerError
from tools.tensorrt.wheels import UnobtainableError, pinned

SOURCES = list(sources_below(Path(metal_edge.__file__).parent))
OURS = defined_in(SOURCES)
WHEELS = {wheel.release: wheel for wheel in pinned("bindings")}
# There is no such name in any version; TensorRT 11 removed the flag that chose FP16.
IMPOSSIBLE, REMOVED = "NoSuchName.AT_ALL", "BuilderFlag.FP16"


# What else values in those files can be; another class is added here when the test asks for it.
KINDS = (BaseModel, ExitStack, Path, datetime, timedelta)
PYTHONS = {
    name
    for kind in (*vars(builtins).values(), *KINDS)
    if isinstance(kind, type)
    for name in dir(kind)
}


@pytest.fixture(scope="session")
def uses() -> Uses:
    return uses_in(SOURCES)


@pytest.fixture(scope="session")
def answers(uses: Uses) -> dict[str, Answer | str]:
    """By release: what the bindings say, or why they cannot be asked here."""
    found: dict[str, Answer | str] = {}
    for release, wheel in WHEELS.items():
        try:
            found[release] = ask(wheel, [*uses.chains, IMPOSSIBLE, REMOVED])
        except (UnobtainableError, NoCompilerError) as error:
            found[release] = str(error)
    return found


@pytest.fixture(params=list(WHEELS))
def answer(request: pytest.FixtureRequest, answers: dict[str, Answer | str]) -> Answer:
    found = answers[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    assert found.version == WHEELS[request.param].version
    return found


def test_the_code_builds_and_runs_engines_by_names_that_were_found(uses: Uses) -> None:
    """Were the convention of the name `trt` broken, the tests below would have nothing to do."""
    assert {"Builder", "OnnxParser", "Runtime"} <= uses.chains.keys()
    assert {"build_serialized_network", "execute_async_v3"} <= uses.members.keys()


def test_names_below_the_package_exist(uses: Uses, answer: Answer) -> None:
    missing = {name: uses.chains[name] for name in answer.missing & uses.chains.keys()}
    assert not missing, f"TensorRT {answer.version} lacks {missing}"


def test_members_exist(uses: Uses, answer: Answer, answers: dict[str, Answer | str]) -> None:
    """Of what is TensorRT's in some version, nothing is missing in this one."""
    everywhere = [a.members for a in answers.values() if isinstance(a, Answer)]
    theirs = uses.members.keys() & frozenset().union(*everywhere) - OURS
    missing = {name: uses.members[name] for name in theirs - answer.members}
    assert not missing, f"no class of TensorRT {answer.version} has {missing}"


def test_no_member_is_unheard_of(uses: Uses, answer: Answer) -> None:
    """A misspelt method is neither TensorRT's nor ours nor Python's."""
    known = answer.members | OURS | PYTHONS
    optional = uses.optional.keys()
    unknown = {n: place for n, place in uses.members.items() if n not in known | optional}
    assert not unknown, f"not in TensorRT {answer.version}: {unknown}"


def test_a_name_that_is_not_there_is_noticed(answer: Answer) -> None:
    assert IMPOSSIBLE in answer.missing
    assert (REMOVED in answer.missing) == answer.version.startswith("11.")


def test_names_behind_hasattr_are_told(
    uses: Uses, answer: Answer, record_property: Callable[[str, object], None]
) -> None:
    """They may be missing here or there, but not everywhere: such a name is misspelt."""
    absent = sorted(uses.optional.keys() - answer.members)
    record_property("optional names absent", ", ".join(absent))
    print(f"TensorRT {answer.version} lacks of the optional names: {', '.join(absent) or 'none'}")


def test_a_name_behind_hasattr_exists_somewhere(
    uses: Uses, answers: dict[str, Answer | str]
) -> None:
    found = [a for a in answers.values() if isinstance(a, Answer)]
    if len(found) < len(answers):
        pytest.skip("some bindings cannot be asked here")
    somewhere = frozenset().union(*(a.members for a in found)) | OURS
    assert not {n: place for n, place in uses.optional.items() if n not in somewhere}


@pytest.mark.parametrize("release", WHEELS)
def test_what_is_not_created_is_no_traceback(release: str) -> None:
    try:
        builder, runtime = refusals(WHEELS[release])
    except (UnobtainableError, NoCompilerError) as error:
        pytest.skip(str(error))
    assert builder.startswith("TensorRT cannot create a builder (")
    assert runtime.startswith("TensorRT cannot create a runtime (")
    assert builder.endswith("): check the NVIDIA driver, and what else takes the GPU's memory")
