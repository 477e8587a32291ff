# Two targets do everything on a fresh Debian or Ubuntu machine:
#   make demo    set up, then run the main job end to end (DATA=folder: real pictures as camera)
#   make test    set up, then lint, types, layering, unit and integration tests
# Two more measure the models, for hours; both go on where they were stopped:
#   make results     docs/results.md anew (DATA=folder of sets SEEDS=3 MINUTES= MODELS=a,b SETS=a,b THREADS=2)
#   make ablation    the paper's Table 3 on a set (DATA=folder SEEDS=3 MINUTES= MASK=zero BLOCKS=1 RECIPE=fast)
# Three compare, in minutes, what a map can be made of (DATA=folder MINUTES= THREADS=2):
#   make maps        error maps and image scores of the paper's network as it learns (MODEL=metal-paper MASK=zeroleak)
#   make synthetic   a head trained on synthetic defects beside the paper's network (HEAD_MINUTES=4)
#   make opinions    context at several radii, students and memory, alone and multiplied (RADII=1,4)
# And one the promises of speed, size and start-up, in minutes, on an idle machine:
#   make bench       bar, measured, reached or missed (RUN=folder MINUTES=1 TURNS=100 WRITE=1 for the docs;
#                    ANOMALIB=1: against anomalib's own PatchCore, about 1 GB to fetch, 2 GB below build/)
# And two the daemon as a process beside a real broker, on an idle machine:
#   make bench-daemon   latency that it adds, rate (TURNS=5 THREADS=1 BUNDLE=folder WRITE=1)
#   make soak        memory, threads, descriptors at full rate (MINUTES=30 FAULTS=1: broker and camera die)
# And one TensorRT without a GPU, with NVIDIA's wheels (150 MB to fetch, 380 MB below build/):
#   make test-tensorrt   names in the bindings of 10.3 to 11.4, graphs built by TensorRT-RTX, plugin
#                        in TensorRT's own registry, the runtime against a stand-in of CUDA
# One executes the CUDA kernels without a GPU, about 20 minutes, and one makes docs/kernels.md anew:
#   make test-kernels   emulation with sanitizers, PTX interpreter, plugin, mutations; says what it skips
#   make kernels-evidence   registers, occupancy, bytes, rooflines
# One boots a machine with a systemd of its own, as root, and runs the service there, half a minute:
#   make test-cameras   pylon, GigE Vision, RTSP, GStreamer without hardware (Debian, Ubuntu)
#   make test-systemd   start, watchdog, credentials, sandbox, reload, stop; says what it skips
# One puts a whole line under every fault of the table, about 10 minutes (FAST=1: the quick ones;
#   MUTANTS=1: also that each deliberate mistake is noticed):
#   make test-faults   kills, hangs, partitions, bad cameras, full disks: report (WRITE=1 for docs/faults.md)
# One checks and times all of it on an NVIDIA GPU; there is none in CI:
#   make device-check   engines, parity, latency, kernels (RUN=folder; KERNELS_ONLY=1: no TensorRT)
# All install what they need: system packages by apt (as root or through sudo), Python packages
# into .venv, at the versions in constraints.txt.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PARTS ?= 200
SEEDS ?= 3
THREADS ?= 2
DOCS ?= docs

.PHONY: bench-daemon soak test-cameras test-faults device-check test-kernels kernels-evidence help setup demo test check format clean results ablation maps opinions synthetic bench test-tensorrt test-systemd

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: constraints.txt pyproject.toml tools/setup.sh
	bash tools/setup.sh $(VENV)

demo: setup
	$(BIN)/metal-edge demo --parts $(PARTS) $(if $(DATA),--data $(DATA))

check: setup
	$(BIN)/ruff format --check metal_edge tests tools
	$(BIN)/ruff check metal_edge tests tools
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_layering.py

test: check
	$(BIN)/pytest -q --durations=20 -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests

format: setup
	$(BIN)/ruff format metal_edge tests tools
	$(BIN)/ruff check --fix metal_edge tests tools

results: setup
	RESULTS_COMMAND='make results $(strip $(MAKEOVERRIDES))' $(BIN)/python -m tools.results \
	  $(if $(DATA),--data $(DATA)) --seeds $(SEEDS) --threads $(THREADS) --docs $(DOCS) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(MODELS),--models $(MODELS)) \
	  $(if $(SETS),--sets $(SETS))

ablation: setup
	$(BIN)/python -m tools.ablation $(or $(DATA),$(error name a set: make ablation DATA=folder)) \
	  --seeds $(SEEDS) --threads $(THREADS) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(MASK),--mask $(MASK)) $(if $(BLOCKS),--blocks $(BLOCKS)) \
	  $(if $(RECIPE),--recipe $(RECIPE))

maps: setup
	$(BIN)/python -m tools.maps $(or $(DATA),$(error name a set: make maps DATA=folder)) \
	  --threads $(THREADS) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(MODEL),--model $(MODEL)) \
	  $(if $(MASK),--mask $(MASK)) $(if $(RADIUS),--radius $(RADIUS))

synthetic: setup
	$(BIN)/python -m tools.synthetic $(or $(DATA),$(error name a set: make synthetic DATA=folder)) \
	  --threads $(THREADS) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(HEAD_MINUTES),--head-minutes $(HEAD_MINUTES))

opinions: setup
	$(BIN)/python -m tools.opinions $(or $(DATA),$(error name a set: make opinions DATA=folder)) \
	  --threads $(THREADS) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RADII),--radii $(RADII))

# OpenVINO runs rivals only, so it is no part of the set-up; anomalib has an environment of its own.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(if $(ANOMALIB),bash tools/bench/anomalib.sh build/anomalib)
	BENCH_COMMAND='make bench $(strip $(MAKEOVERRIDES))' $(BIN)/python -m tools.bench \
	  $(if $(RUN),--run $(RUN)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(TURNS),--turns $(TURNS)) \
	  $(if $(ANOMALIB),--anomalib build/anomalib) $(if $(WRITE),--docs $(DOCS))

bench-daemon: setup
	BENCH_COMMAND='make bench-daemon $(strip $(MAKEOVERRIDES))' $(BIN)/python -m tools.bench_daemon \
	  $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(TURNS),--turns $(TURNS)) \
	  $(if $(filter command line,$(origin THREADS)),--threads $(THREADS)) $(if $(WRITE),--docs $(DOCS))

soak: setup
	SOAK_COMMAND='make soak $(strip $(MAKEOVERRIDES))' $(BIN)/python -m tools.bench_daemon.soak \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FAULTS),--faults) $(if $(WRITE),--docs $(DOCS))

# Not part of `make test`: proprietary wheels. CI calls it. What cannot be had is skipped, and said.
test-tensorrt: setup
	bash tools/kernels/packages.sh host
	$(BIN)/python -m tools.tensorrt.wheels
	$(BIN)/pytest -q -rs --show-capture=no --durations=5 --timeout=600 -k 'not aarch64' tests/tensorrt \
	  tests/kernels/plugin/test_plugin_library.py tests/kernels/plugin/test_plugin_from_python.py \
	  tests/unit/runtime/test_tensorrt_runner.py tests/unit/runtime/test_tensorrt_cuda_memory.py

# Compilers, CMake and qemu come by apt where they are missing; nvcc and NVIDIA's wheels add what
# they can check. What could not be had is skipped, and -rs says so.
test-kernels: setup
	bash tools/kernels/packages.sh
	$(BIN)/pytest -q -rs --durations=10 --timeout=1800 tests/kernels

# Aravis, GStreamer and their bindings by apt, pypylon by pip; what cannot be had is skipped.
test-cameras: setup
	bash tools/cameras/packages.sh $(VENV)
	$(BIN)/pytest -q -rs --durations=5 tests/cameras

# The first time debootstrap fetches a minimal system (300 MB below build/, about two minutes).
test-systemd: setup
	bash tools/systemd/root.sh build/systemd
	$(BIN)/pytest -q -rs tests/systemd

kernels-evidence: setup
	$(BIN)/python -m tools.kernels.evidence --docs $(DOCS)

# Real processes, brokers, namespaces and disks; as root everything is tried, else what may be.
test-faults: setup
	bash tools/faults_packages.sh
	FAULTS_COMMAND='make test-faults $(strip $(MAKEOVERRIDES))' FAST=$(FAST) MUTANTS=$(MUTANTS) \
	  FAULTS_WRITE=$(if $(WRITE),$(DOCS)/faults.md) \
	  $(BIN)/pytest -q -rs --show-capture=no --durations=5 --timeout=600 tests/faults

clean:
	rm -rf build $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache

device-check: setup
	$(BIN)/python -m tools.device $(if $(RUN),--run $(RUN)) $(if $(KERNELS_ONLY),--kernels-only)
