#!/usr/bin/env bash
# Makes the virtual environment at $1 and installs what demo and tests need. Safe to repeat.
set -euo pipefail
venv=${1:?usage: tools/setup.sh VENV}
here=$(cd "$(dirname "$0")/.." && pwd)

say() { printf 'setup: %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else say "need root for: $*"; say "run that as root, then repeat"; exit 1
  fi
}

missing=()
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
command -v mosquitto_sub >/dev/null || missing+=(mosquitto-clients)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || { say "please install: ${missing[*]}"; exit 1; }
  say "installing system packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "Python 3.11 or newer is needed, found $(python3 --version)"
  exit 1
}

[ -x "$venv/bin/python" ] || { say "creating $venv"; python3 -m venv "$venv"; }
say "installing Python packages at the versions in constraints.txt (some minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c "$here/constraints.txt" -e "$here[train,vit,metrics,results,dev]"
touch "$venv/.ready"
say "ready"
