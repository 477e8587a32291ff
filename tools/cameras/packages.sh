#!/usr/bin/env bash
# Installs what the tests of cameras stand cameras in with: Aravis and its fake camera, GStreamer
# and its RTSP server, from Debian or Ubuntu; Basler's pypylon from PyPI into the environment $1.
# Where that is not possible it says what is missing and goes on: those tests are skipped with a reason.
set -uo pipefail
venv=${1:?usage: tools/cameras/packages.sh VENV}
here=$(cd "$(dirname "$0")/../.." && pwd)

wanted=(python3-gi gir1.2-aravis-0.8 aravis-tools gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0
  gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
  gir1.2-gst-rtsp-server-1.0)

missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo -n)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "test-cameras: installing ${missing[*]}"
  if ! command -v apt-get >/dev/null ||
    ! "${root[@]}" apt-get update -qq ||
    ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "test-cameras: could not install ${missing[*]}; the tests that need them will be skipped"
  fi
fi
if ! "$venv/bin/python" -c 'import pypylon' 2>/dev/null; then
  echo "test-cameras: installing pypylon"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$here/constraints.txt" -e "$here[pylon]" ||
    echo "test-cameras: could not install pypylon; the tests that need it will be skipped"
fi
exit 0
