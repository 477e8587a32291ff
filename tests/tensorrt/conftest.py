"""What needs NVIDIA's wheels: collected only when asked for by path, `make test-tensorrt`.

`pytest tests` must not fetch 100 MB of proprietary wheels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # this file is also read where nothing here is collected
    from support.tensorrt_graphs import Graphs

HERE = Path(__file__).parent
MODELS = ("metal", "metal-features", "l2bt", "anovit")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args]
    here = any(path.resolve().is_relative_to(HERE) for path in asked)
    return None if here or not collection_path.is_relative_to(HERE) else True


@pytest.fixture(scope="session", params=MODELS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Each model's default network, of real size."""
    from support.tensorrt_graphs import Graphs

    return Graphs({"kind": request.param}, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """MeTAL on 32 x 32 pixels."""
    from support.tensorrt_graphs import Graphs

    sizes = {"image_size": 32, "patch_size": 8, "embedding": 16, "heads": 2, "blur_sigma": 2.0}
    hidden = {"square_hidden": 16, "stripe_hidden": 16, "decoder_hidden": (16,)}
    return Graphs({"kind": "metal", **sizes, **hidden}, tmp_path_factory.mktemp("tiny"))
