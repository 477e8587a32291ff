#!/usr/bin/env bash
# Makes a virtual environment with anomalib at $1, at the versions in anomalib.txt, for
# `make bench ANOMALIB=1`. Safe to repeat. Its own: anomalib's pins are not this project's.
set -euo pipefail
venv=${1:?usage: tools/bench/anomalib.sh VENV}
wanted=$(cd "$(dirname "$0")" && pwd)/anomalib.txt

cmp -s "$wanted" "$venv/anomalib.txt" && exit 0
printf 'bench: installing anomalib into %s: about 2 GB, more where torch comes with CUDA\n' "$venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" "$venv/anomalib.txt"
