"""The plugin in its forms, each built once; absent compilers and wheels skip, with the reason."""

from __future__ import annotations

import pytest

from tools.kernels.build import MissingToolError
from tools.kernels.plugin import FORMS, Built, build
from tools.tensorrt.wheels import UnobtainableError


def built_or_skip(form: str) -> Built:
    try:
        return build(form)
    except (MissingToolError, UnobtainableError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=FORMS)
def built(request: pytest.FixtureRequest) -> Built:
    return built_or_skip(request.param)


@pytest.fixture(scope="session")
def emulated() -> Built:
    return built_or_skip("emulated")


@pytest.fixture(scope="session")
def cuda() -> Built:
    return built_or_skip("cuda")


@pytest.fixture(scope="session", params=["cuda", "aarch64"])
def for_a_device(request: pytest.FixtureRequest) -> Built:
    return built_or_skip(request.param)
