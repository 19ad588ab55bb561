#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests: all of them, or those with a label. Asks nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/test.sh [--label LABEL]... [--preset PRESET]
  --label LABEL    only tests with this ctest label (unit, integration, fault, hosts, ...); may be repeated
  --preset PRESET  build and test another preset of CMakePresets.json: debug, asan-ubsan or tsan (default: release)
TEXT
}

labels=()
preset=release
while [[ $# -gt 0 ]]; do
  case $1 in
    --label | --preset)
      if [[ $# -lt 2 ]]; then echo "test.sh: $1 wants a value" >&2; exit 2; fi
      if [[ $1 == --label ]]; then labels+=("$2"); else preset=$2; fi
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

failed=()
# step NAME COMMAND...: runs it and tells how long it took. Its failure is remembered, and returned.
step() {
  local name=$1 begin=$SECONDS result=ok
  shift
  echo "== $preset: $name"
  "$@" || result=FAILED
  echo "== $preset: $name: $result, $((SECONDS - begin)) s"
  if [[ $result == FAILED ]]; then failed+=("$name"); return 1; fi
}

# The thread sanitizer of g++ 12 does not start where addresses are randomized by more than 28 bits. The build needs this too: it runs
# the tests once, to list them.
plainly=()
if [[ $preset == tsan ]] && setarch -R true 2>/dev/null; then plainly=(setarch -R); fi

# With labels only their programs; those of fuzz, sim and vm have no target of their own.
targets=()
for label in "${labels[@]}"; do
  if [[ ! $label =~ ^(unit|fault|hosts|integration)$ ]]; then targets=(); break; fi
  targets+=(--target "tests_$label")
done
build() { cmake --preset "$preset" && "${plainly[@]}" cmake --build --preset "$preset" "${targets[@]}"; }
tests() { "${plainly[@]}" ctest --preset "$preset" --no-tests=error "$@"; }

step install tools/deps/install.sh || exit 1
# Guests are for the release preset. Without them all other tests run all the same.
if [[ $preset == release && ( ${#labels[@]} == 0 || " ${labels[*]} " == *" vm "* ) ]]; then
  if ! tools/deps/install.sh --vm; then
    echo "test.sh: QEMU cannot be installed here; the tests labelled vm will say that they were skipped"
  fi
fi
if [[ ! -e /dev/fuse ]]; then modprobe fuse 2>/dev/null || true; fi
if [[ ! -e /dev/fuse ]]; then echo "test.sh: no /dev/fuse here; the tests that mount will say that they were skipped"; fi
step build build || exit 1

# Unit tests share nothing and run two at a time. The others measure, mount and kill, so they run alone.
if [[ ${#labels[@]} == 0 ]]; then
  step "tests labelled unit" tests -j 2 -L '^unit$' || true
  step "all other tests" tests -j 1 -LE '^unit$' || true
else
  for label in "${labels[@]}"; do
    parallel=1
    if [[ $label == unit ]]; then parallel=2; fi
    step "tests labelled $label" tests -j "$parallel" -L "^$label\$" || true
  done
fi

if [[ ${#failed[@]} != 0 ]]; then
  echo "test.sh: FAILED after $SECONDS s: $(IFS=';'; echo "${failed[*]}")"
  exit 1
fi
echo "test.sh: all passed, $SECONDS s"
