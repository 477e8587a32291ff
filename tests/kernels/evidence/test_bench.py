"""bench_masked_attention: its checks, on the emulation in place of a GPU; its refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools.kernels import build
from tools.kernels.evidence.problems import problems

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
NAME = "bench_masked_attention"
EMULATION = "-DMETAL_EDGE_CUDA=OFF"


def _built(kernels: Path, folder: Path, *options: str) -> Path:
    for command in (
        ["cmake", "-S", str(kernels / "bench"), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert "warning:" not in done.stdout, done.stdout[-4000:]
    return folder / NAME


def _run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def emulated() -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return _built(build.KERNELS, build.CACHE / "device-check" / "bench", EMULATION)


@pytest.fixture(scope="module")
def checked(emulated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    names = ("metal-squares", "metal-stripes", "zeroleak", "features", "vit-small")
    words = [word for name in names for word in ("--case", name)]
    done = _run(emulated, *words, "--batch", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_all_kernels_are_within_twice_the_plain_error(checked: dict[str, Any]) -> None:
    rows = {(row["case"], row["type"]): row for row in checked["results"]}
    assert len(rows) == 14, "three types of five cases; metal-stripes is too wide for int8"
    for row in rows.values():
        assert 0 < row["error"] <= row["bound"], row
    assert rows["features", "float16"]["kernel"] == "masked_attention_f16_flash_d32"
    assert rows["zeroleak", "int8"]["kernel"] == "masked_attention_s8_short_d64"
    assert rows["vit-small", "float32"]["kernel"] == "masked_attention_f32_plain_d64"


def test_its_cases_are_those_of_the_evidence(checked: dict[str, Any]) -> None:
    known = {each.name: each for each in problems()}
    for row in checked["results"]:
        case = known[row["case"]]
        spec = case.spec
        shape = (spec.heads, case.head_dim, case.queries, case.keys, int(spec.allowed.sum()))
        names = ("heads", "head_dim", "queries", "keys", "allowed")
        assert tuple(row[name] for name in names) == shape


def test_nothing_claims_a_time_where_nothing_was_timed(checked: dict[str, Any]) -> None:
    assert checked["timed"] is False
    times = [row[who] for row in checked["results"] for who in ("ours", "plain", "composition")]
    for time in [*times, checked["nothing"]]:
        assert time == {"cold_us": None, "warm_us": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "nope"], "no case is called nope; there are metal-squares"),
        (["--batch", "0"], "--batch is '0'; it takes 1 to 64"),
        (["--repeats", "12x"], "--repeats is '12x'"),
        (["--json"], "--json needs a value"),
        (["--fast"], "unknown argument '--fast'"),
    ],
)
def test_wrong_arguments_are_named(emulated: Path, words: list[str], said: str) -> None:
    done = _run(emulated, *words)
    assert (done.returncode, done.stdout) == (64, "")
    assert said in done.stderr


def test_a_report_that_cannot_be_written_is_an_error(emulated: Path, tmp_path: Path) -> None:
    done = _run(emulated, "--case", "metal-stripes", "--json", str(tmp_path / "no" / "b.json"))
    assert done.returncode == 1
    assert "No such file" in done.stderr


# Each is a mistake in one of the implementations that it compares.
MISTAKES = {
    "the kernel is wrong": ("attention/short.cuh", "score_scale * kLog2e", "score_scale * 1.5f"),
    "the composition is wrong": (
        "bench/composition_kernels.cu",
        "key < p.keys; ++key",
        "key < p.keys - 1; ++key",
    ),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_wrong_result_is_loud(tmp_path: Path, said: str) -> None:
    file, good, bad = MISTAKES[said]
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    kernels = tmp_path / "kernels"
    shutil.copytree(build.KERNELS, kernels)
    text = (kernels / file).read_text()
    assert good in text, f"{file} has changed: choose another mistake"
    (kernels / file).write_text(text.replace(good, bad))
    quick = ("-DMETAL_EDGE_HEAD_DIMS=32", "-DCMAKE_BUILD_TYPE=Debug")
    program = _built(kernels, tmp_path / "build", EMULATION, *quick)
    done = _run(program, "--case", "metal-squares")
    assert done.returncode == 1
    assert f"{said} on metal-squares" in done.stderr
    assert "ours" not in done.stdout, "no table after a wrong result"


def test_built_for_the_gpu_it_says_when_there_is_none() -> None:
    try:
        compiler = build.find_nvcc()
    except build.MissingToolError as error:
        pytest.skip(str(error))
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has a GPU")
    program = _built(
        build.KERNELS,
        build.CACHE / "bench-gpu",
        "-DMETAL_EDGE_CUBLAS=OFF",
        "-DCMAKE_CUDA_ARCHITECTURES=87",
        f"-DCMAKE_CUDA_COMPILER={compiler}",
    )
    done = _run(program)
    assert (done.returncode, done.stdout) == (69, "")
    assert "no CUDA device" in done.stderr
