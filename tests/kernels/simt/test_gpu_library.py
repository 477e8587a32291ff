"""What stands between NumPy and a GPU, with the emulation in the GPU's place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from support.attention_cases import assert_close, make_case
from support.fused_blocks import check_exact, random_case

from tools.kernels import build
from tools.kernels.attention import FOLDER, LaunchError, run_host
from tools.kernels.gpu import API, GpuBlock, GpuLibrary, describe

FAKE = Path(__file__).with_name("fake_gpu_api.cpp")


@pytest.fixture(autouse=True)
def emulation_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu_library(
        sources: Iterable[Path], _arch: str, defines: build.Defines | None = None
    ) -> Path:
        sources = [FAKE if source == API else source for source in sources]
        return build.host_library(sources, defines=defines)

    try:
        build.find_gxx()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(build, "gpu_library", gpu_library)


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.float32])
def test_attention_comes_back_right(kind: type) -> None:
    library = GpuLibrary((32,))
    case = make_case(
        kind, batch=2, heads=2, queries=70, keys=70, inputs=1, slack=(1, 16),
        slopes=(0.5, 0.25), columns=10,
    )  # fmt: skip
    assert_close(run_host(library, case.tensors, case.spec, slack=case.slack), case)


def test_a_block_comes_back_right_and_leaves_its_inputs_alone() -> None:
    case = random_case(1, batch=2, heads=2)
    check_exact(case, GpuBlock().run_host(case))


def test_what_a_kernel_writes_behind_an_array_is_found(tmp_path: Path) -> None:
    """The plain kernel, one row further than the output is."""
    for name in ("kernels.cu", "launch.cu", "planner.cpp", "host_api.cpp"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    for path in [*FOLDER.glob("*.cuh"), *FOLDER.glob("*.h")]:
        (tmp_path / path.name).write_text(path.read_text())
    launcher = tmp_path / "launch.cu"
    text = launcher.read_text()
    good = "arguments(problem, buffers));"
    bad = (
        "arguments(problem, Buffers{buffers.q, buffers.k, buffers.v,"
        " static_cast<char*>(buffers.out) + 16, buffers.mask, buffers.tiles, buffers.slopes}));"
    )
    assert good in text
    launcher.write_text(text.replace(good, bad))
    case = make_case(np.float32, queries=16, keys=16)
    with pytest.raises(LaunchError, match="wrote behind out"):
        run_host(GpuLibrary((32,), tmp_path), case.tensors, case.spec)


def test_a_gpu_is_described_as_the_device_check_reads_it() -> None:
    assert describe().rpartition(" ")[2] == "0.0"
