#!/usr/bin/env bash
# Makes the root folder of the machine that tests/systemd boots: this distribution's minimal
# system with systemd, Python and mosquitto, at $1/root (300 MB, about two minutes, kept).
# Where it cannot be had it says why and ends well: the tests then skip with the same reason.
set -euo pipefail
folder=${1:?usage: tools/systemd/root.sh FOLDER}
packages=systemd,systemd-sysv,dbus,python3,mosquitto,mosquitto-clients

say() { printf 'test-systemd: %s\n' "$*"; }
give_up() { say "$*; the tests will be skipped"; exit 0; }

[ -e "$folder/root/.ready" ] && exit 0
[ "$(id -u)" -eq 0 ] || give_up "booting a machine needs root"
missing=()
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || give_up "please install ${missing[*]}"
  say "installing ${missing[*]}"
  apt-get update -qq || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null || give_up "${missing[*]} cannot be installed"
fi

suite=$(. /etc/os-release; printf '%s' "${VERSION_CODENAME:-}")
# The mirror that this machine's own packages come from.
mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' |
  awk -v suite="$suite" '$1 == suite { print $2; exit }')
[ -n "$suite" ] && [ -n "$mirror" ] || give_up "no package mirror for '$suite' is known to apt"

mkdir -p "$folder"
rm -rf "$folder/root.part"
say "installing $suite into $folder/root (about two minutes, once)"
debootstrap --variant=minbase --include="$packages" "$suite" "$folder/root.part" "$mirror" \
  >"$folder/debootstrap.log" 2>&1 || give_up "debootstrap failed (see $folder/debootstrap.log)"
rm -rf "$folder/root.part/var/cache/apt/archives" "$folder/root"
touch "$folder/root.part/.ready"
mv "$folder/root.part" "$folder/root"
