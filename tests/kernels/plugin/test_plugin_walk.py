"""A host program walks through the plugin as TensorRT would, in every form that builds here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools.kernels.build import KERNELS
from tools.kernels.plugin import Built, build

PARTS = ("creators", "build time", "serialisation", "refusals", "run time")


def test_every_step_of_the_walk_passes(built: Built) -> None:
    done = built.walk()
    assert done.returncode == 0, done.stdout + done.stderr
    for part in PARTS:
        assert f"ok - {part}\n" in done.stdout
    emulates = built.form in {"emulated", "sanitized"}
    if emulates:
        assert "ok - numbers\n" in done.stdout
    elif not Path("/dev/nvidiactl").exists():
        assert "skipped - numbers: there is no GPU" in done.stdout
        assert "no device: contexts and launches are refused" in done.stdout


def test_ctest_runs_the_walk(emulated: Built) -> None:
    done = subprocess.run(
        ["ctest", "--test-dir", str(emulated.folder), "--verbose"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 failures" in done.stdout and "100% tests passed" in done.stdout


def test_it_installs_where_the_runtime_looks(emulated: Built, tmp_path: Path) -> None:
    command = ["cmake", "--install", str(emulated.folder), "--prefix", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    installed = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert installed == [Path("lib/metal-edge/libmetal_edge_plugin.so")]


def test_without_headers_cmake_says_what_to_install(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    done = subprocess.run(
        [
            "cmake", "-S", str(KERNELS), "-B", str(tmp_path), "-DMETAL_EDGE_CUDA=OFF",
            "-DTENSORRT_HEADERS=TENSORRT_HEADERS-NOTFOUND", "-DCMAKE_FIND_ROOT_PATH=/nowhere",
            f"-DTENSORRT_INCLUDE_DIR={tmp_path / 'nowhere'}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        pytest.skip("this machine has TensorRT's headers")
    assert "libnvinfer-headers-dev" in done.stderr and "TENSORRT_INCLUDE_DIR" in done.stderr


# Where to break the plugin, and the part of the walk that must notice.
FAULTS = {
    "the creator takes any number of heads": (
        "plugin/attributes.cpp",
        "if (a.heads < 1) return",
        "if (false) return",
        "refusals",
    ),
    "padding bits of the mask may be set": (
        "plugin/attributes.cpp",
        "if ((words[i] & ~existing_keys",
        "if (false && (words[i] & ~existing_keys",
        "refusals",
    ),
    "a mask of another N is taken": (
        "plugin/shapes.cpp",
        "if (differs(sizes.queries, a.queries())) {",
        "if (false) {",
        "build time",
    ),
    "int8 is taken without scales": (
        "plugin/shapes.cpp",
        "if (type == DataType::kINT8 && !a.int8_scales()) {",
        "if (false) {",
        "build time",
    ),
    "an attribute is lost in the plan": (
        "plugin/fields.cpp",
        "if (field.length > 0) fields.push_back(field);",
        "if (field.length > 0 && entry.name != std::string(\"slopes\")) fields.push_back(field);",
        "serialisation",
    ),
    "the timing cache does not see the mask": (
        "plugin/attributes.cpp",
        "(value ^ word) * 0x100000001b3u",
        "value",
        "serialisation",
    ),
    "a launch error is not reported": (
        "plugin/attention.cpp",
        "if (code != 0) {",
        "if (false) {",
        "run time",
    ),
    "enqueue goes ahead without a shape": (
        "plugin/block.cpp",
        "if (constants() == nullptr || this->inputs() == 0) {",
        "if (false) {",
        "",
    ),
    "a refused shape leaves the one before in force": (
        "plugin/plugin.cpp",
        "inputs_ = 0;  // until",
        "// until",
        "run time",
    ),
    "values are read where the keys are": (
        "plugin/attention.cpp",
        "v = first + 2 * part",
        "v = first + part",
        "numbers",
    ),
    "a query of batch 1 is not shared": (
        "plugin/shapes.cpp",
        "sizes.query_shared ? 0 : n * q_row",
        "n * q_row",
        "",
    ),
    "hex digits are read in the wrong order": (
        "plugin/attributes.cpp",
        "uint32_t(high << 4 | low)",
        "uint32_t(low << 4 | high)",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walk_notices(fault: str, emulated: Built) -> None:
    """Breaks one line of a copy; the copy's build folder is kept, so that little is compiled."""
    name, right, wrong, part = FAULTS[fault]
    copy = emulated.folder.parent / "faulty" / "kernels"
    folder = copy.parent / "build"
    tests = copy.parent / "tests" / "kernels" / "plugin"
    sync(KERNELS, copy)
    sync(Path(__file__).parent, tests)
    text = (copy / name).read_text()
    assert text.count(right) == 1, f"{name} no longer has {right!r} once: adapt this test"
    (copy / name).write_text(text.replace(right, wrong))
    done = build("emulated", source=copy, folder=folder).walk()
    assert done.returncode != 0, done.stdout
    assert f"FAILED - {part}" in done.stdout


def sync(source: Path, target: Path) -> None:
    """Copies files that differ, and no others: what is unchanged need not be compiled anew."""
    for path in source.rglob("*"):
        if path.suffix not in {".cpp", ".h", ".cu", ".cuh", ".hpp", ".txt", ".cmake", ".map"}:
            continue
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        if not there.exists() or there.read_bytes() != path.read_bytes():
            shutil.copyfile(path, there)
