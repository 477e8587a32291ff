#!/usr/bin/env bash
# Installs what the tests of the kernels compile and run with. Where that is not possible, it says
# what is missing and goes on: those tests are skipped with a reason. With the word "host" nothing for
# cross-building.
set -uo pipefail

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
if [ "${1:-}" != host ]; then
  command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
  command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
fi
[ "${#missing[@]}" -eq 0 ] && exit 0

root=()
[ "$(id -u)" -eq 0 ] || root=(sudo -n)
echo "kernels: installing ${missing[*]}"
if ! command -v apt-get >/dev/null ||
  ! "${root[@]}" apt-get update -qq ||
  ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}" >/dev/null; then
  echo "kernels: could not install ${missing[*]}; the tests that need them will be skipped"
fi
exit 0
