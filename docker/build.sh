#!/usr/bin/env bash
# Builds the image of docker/Dockerfile. Where no registry is reachable it makes the base image itself, with debootstrap.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: docker/build.sh [--tag TAG] [--base IMAGE] [--local-base] [-- WORDS FOR docker build...]
  --tag TAG      name of the image (default kvcfs)
  --base IMAGE   a Debian 12 or 13 (default debian:bookworm-slim)
  --local-base   do not ask a registry: make the image kvcfs-base:bookworm with debootstrap (as root) and build on that;
                 done by itself where the base image is neither here nor to be had
Example, where containers have no network of their own:
  docker/build.sh --local-base -- --network host --build-arg CMAKE_BUILD_PARALLEL_LEVEL=1
TEXT
}

tag=kvcfs
base=debian:bookworm-slim
own=no
while [[ $# -gt 0 ]]; do
  case $1 in
    --tag | --base)
      if [[ $# -lt 2 ]]; then echo "build.sh: $1 wants a value" >&2; exit 2; fi
      if [[ $1 == --tag ]]; then tag=$2; else base=$2; fi
      shift 2 ;;
    --local-base) own=yes; shift ;;
    --) shift; break ;;
    -h | --help) usage; exit 0 ;;
    *) echo "build.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
  esac
done

say() { echo "build.sh: $*" >&2; }
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if ! reason=$(docker version --format '{{.Server.Version}}' 2>&1); then
  say "no Docker daemon answers (${reason##*$'\n'}); start it, or name it in DOCKER_HOST"
  exit 1
fi

suite=bookworm
made=kvcfs-base:$suite
make_base() {
  if docker image inspect "$made" >/dev/null 2>&1; then return 0; fi
  if [[ $(id -u) != 0 ]]; then say "debootstrap needs root"; return 1; fi
  if ! command -v debootstrap >/dev/null; then say "no debootstrap here: apt-get install debootstrap"; return 1; fi
  # The mirror that this machine uses, if it is a Debian; else debootstrap's own.
  local mirror work
  mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null \
    | grep '^http' | head -n 1) || true
  work=$(mktemp -d /var/tmp/kvcfs-base.XXXXXX)
  trap 'rm -rf --one-file-system "$work"' RETURN
  say "making $made from ${mirror:-the default mirror}"
  debootstrap --variant=minbase "$suite" "$work/root" ${mirror:+"$mirror"} >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }
  rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  tar -C "$work/root" --numeric-owner -c . | docker import --change 'CMD ["bash"]' - "$made" >/dev/null
}

if [[ $own == no ]] && ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull "$base"; then
  say "no base image $base to be had"
  own=yes
fi
if [[ $own == yes ]]; then
  make_base || exit 1
  base=$made
fi

docker build --file "$top/docker/Dockerfile" --build-arg BASE="$base" --tag "$tag" "$@" "$top"
say "$tag is built on $base"
