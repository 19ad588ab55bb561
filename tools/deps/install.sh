#!/usr/bin/env bash
# Installs what building, running and testing kvcfs needs on Debian 12 or 13. Asks nothing and may be run again: when
# nothing is missing it takes no network, no root and well under a second.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/deps/install.sh [--ci] [--vm] [--check]
  --ci      also what the checks of .ci/run need (tools/deps/packages-ci.txt)
  --vm      also what the tests labelled vm need (tools/deps/packages-vm.txt)
  --check   install nothing; name what is missing and exit 1 if anything is
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lists=("$here/packages.txt")
check_only=no
for arg in "$@"; do
  case $arg in
    --ci) lists+=("$here/packages-ci.txt") ;;
    --vm) lists+=("$here/packages-vm.txt") ;;
    --check) check_only=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "install.sh: unknown option '$arg'" >&2; usage >&2; exit 2 ;;
  esac
done

say() { echo "install.sh: $*" >&2; }

# Lines of the lists, without comments: "name" or "name|other".
wanted=$(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "${lists[@]}")

declare -A installed=()
read_installed() {
  installed=()
  local name state
  while read -r name state; do
    if [[ $state == installed ]]; then installed[$name]=1; fi
  done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n')
}

# Prints the lines of $wanted of which no alternative is installed.
missing_lines() {
  local line name found
  for line in $wanted; do
    found=no
    for name in ${line//|/ }; do
      if [[ -n ${installed[$name]:-} ]]; then found=yes; break; fi
    done
    if [[ $found == no ]]; then echo "$line"; fi
  done
}

libfuse_ready() {
  pkg-config --atleast-version=3.17 fuse3 2>/dev/null || "$here/libfuse.sh" --check
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" </dev/null >&2
}

can_install() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }

read_installed
missing=$(missing_lines)
if [[ -z $missing ]] && libfuse_ready; then exit 0; fi

if [[ $check_only == yes ]]; then
  for line in $missing; do echo "$line"; done
  libfuse_ready || echo "libfuse 3.17 or newer"
  exit 1
fi
if [[ $(id -u) != 0 ]]; then
  say "must be root to install: ${missing//$'\n'/ } (and libfuse >= 3.17 if that is missing). Run it with sudo."
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  say "no apt-get here; kvcfs is built on Debian 12 or 13. Install the like of: ${missing//$'\n'/ }"
  exit 1
fi

# One at a time: two builds on a host may start together.
mkdir -p /run/lock
exec 9>/run/lock/kvcfs-deps.lock
flock 9
read_installed
missing=$(missing_lines)

# A package manager that was interrupted refuses everything until this has been done.
if dpkg-query -W -f '${db:Status-Status}\n' | grep -qE '^(unpacked|half-configured|half-installed)$'; then
  say "finishing an interrupted installation"
  DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null >&2 || true
  read_installed
  missing=$(missing_lines)
fi

updated=no
update_once() {
  if [[ $updated == yes ]]; then return 0; fi
  updated=yes
  local try
  for try in 1 2 3 4 5; do
    if apt update; then return 0; fi
    if [[ $try != 5 ]]; then say "apt-get update failed, once more in 5 s"; sleep 5; fi
  done
  say "apt-get update failed; going on with the package lists that are here"
}

if [[ -n $missing ]]; then
  update_once
  names=()
  for line in $missing; do
    chosen=${line%%|*}
    for name in ${line//|/ }; do
      if can_install "$name"; then chosen=$name; break; fi
    done
    names+=("$chosen")
  done
  say "installing ${names[*]}"
  if ! apt install --no-install-recommends "${names[@]}"; then
    say "apt-get could not install: ${names[*]}. Its reason stands above; is this Debian 12 or 13, with 'main' enabled?"
    exit 1
  fi
fi

# libfuse 3.17 is the first with passthrough: Debian 13's own package, else built from Debian's source package.
if ! libfuse_ready; then
  update_once
  candidate=$(apt-cache policy libfuse3-dev | awk '$1 == "Candidate:" { print $2 }')
  if [[ -n $candidate ]] && dpkg --compare-versions "$candidate" ge 3.17; then
    say "installing libfuse3-dev $candidate"
    apt install --no-install-recommends libfuse3-dev
  else
    "$here/libfuse.sh"
  fi
fi

read_installed
missing=$(missing_lines)
if [[ -n $missing ]]; then
  say "still missing: ${missing//$'\n'/ }"
  exit 1
fi
say "done"
