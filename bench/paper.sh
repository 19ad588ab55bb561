#!/usr/bin/env bash
# The paper's experiment (arXiv 2505.21919): a trace's metadata operations against kvcfs and all that it is measured against.
# bench/paper.sh [--trace FILE] [--limit N] [--json FILE] [--report FILE.html]; bench/paper.sh --help tells the rest.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${top}/build

usage() {
  cat <<'TEXT'
usage: bench/paper.sh [--trace FILE] [--limit N] [--json FILE] [--report FILE.html]
  --trace FILE      JSON lines in Mooncake's format; without it one is made by `kvcfs trace synth`
  --limit N         only its first N requests
  --json FILE       rows, policies, and what else was measured, as one object
  --report FILE     one HTML page with the figures
  --requests N      at most so many requests a run, every nth of more (default 4000; 0: all)
  --open-seconds S  how long an open loop takes (default 5)
  --clients N,...   how many ask at a time (default 1,4,16; the goals are of 4 and 16)
  --only NAME,...   some backends, or NAME/TRANSPORT of them: kvcfs redis-get redis-pipeline redis-mget redis-range rocksdb hash-table radix-tree
                    kvcfs-one-sided sherman chime flat-hash batch-rpc
  --build DIR       a build directory that is there already; --no-build: and nothing is to be built
Redis and the cluster over TCP want redis-server and etcd-server; what is missing is said, and listed in the results.
TEXT
}

command="bench/paper.sh $*"
trace=
limit=0
arguments=()
need() { if (($1 < 2)); then echo "paper.sh: $2 wants a value" >&2; exit 2; fi; }
while (($# > 0)); do
  case $1 in
    --trace) need $# "$1"; trace=$2; shift ;;
    --limit) need $# "$1"; limit=$2; shift ;;
    --json | --report | --requests | --open-seconds | --clients | --only) need $# "$1"; arguments+=("$1" "$2"); shift ;;
    --build) need $# "$1"; build=$(realpath -m "$2"); shift ;;
    --no-build) skip=yes ;;
    --help | -h) usage; exit 0 ;;
    *) echo "paper.sh: no such option: $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
if [[ ! $limit =~ ^[0-9]+$ ]]; then
  echo "paper.sh: --limit wants a number" >&2
  exit 2
fi

if [[ ${skip:-no} == no ]]; then
  if [[ ! -f $build/build.ninja ]]; then
    cmake -S "$top" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
  fi
  cmake --build "$build" --target kvcfs index_bench >&2
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/kvcfs-paper-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
name=$(basename "${trace:-kvcfs trace synth}")
if [[ -z $trace ]]; then
  trace=$scratch/trace.jsonl
  requests=$((limit > 0 ? limit : 12000))
  "$build/kvcfs" trace synth --requests "$requests" --output "$trace"
fi
"$build/bench/index_bench" paper --trace "$trace" --name "$name" --limit "$limit" --command "$command" "${arguments[@]}"
