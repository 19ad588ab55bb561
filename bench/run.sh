#!/usr/bin/env bash
# Builds, mounts its own kvcfs, measures it beside tmpfs, ext4 and fio in the same run, and prints one table of ratios.
# As root: bench/run.sh [--quick] [--rows a,b] [--list] [--json FILE] ...; bench/run.sh --help tells all.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${top}/build
arguments=()
while (($# > 0)); do
  case $1 in
    --build) build=$(realpath -m "$2"); shift ;;  # a build directory that is there already
    --no-build) skip=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
if [[ ${skip:-no} == no ]]; then
  if [[ ! -f $build/build.ninja ]]; then
    cmake -S "$top" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
  fi
  targets=(kvcfs file_bench)
  for name in index_bench segment_bench; do
    if [[ -f $top/bench/$name.cc ]]; then targets+=("$name"); fi
  done
  cmake --build "$build" --target "${targets[@]}" >&2
fi
exec python3 "$top/bench/run.py" --build "$build" "${arguments[@]}"
