#!/usr/bin/env bash
# Installs what the fault suite injects with. What cannot be had is said, and those faults are
# skipped with a reason.
set -uo pipefail

missing=()  # real cameras' stand-ins: the list in full is in tools/cameras/packages.sh
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
command -v ip >/dev/null || missing+=(iproute2)
command -v openssl >/dev/null || missing+=(openssl)
command -v faketime >/dev/null || missing+=(faketime)
for package in gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gir1.2-aravis-0.8 aravis-tools; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
    missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

root=()
[ "$(id -u)" -eq 0 ] || root=(sudo -n)
echo "test-faults: installing ${missing[*]}"
if ! command -v apt-get >/dev/null ||
  ! "${root[@]}" apt-get update -qq ||
  ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}" >/dev/null; then
  echo "test-faults: could not install ${missing[*]}; what needs them will be skipped"
fi
exit 0
