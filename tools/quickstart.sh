#!/usr/bin/env bash
# From a clean clone to a working cache: installs what is missing, builds, mounts, plays a small trace through the mount, looks
# at what is cached with ordinary shell tools and checks every answer. As root. Asks nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/quickstart.sh [--once]
  --once  use fresh temporary directories, unmount at the end, leave nothing behind, and exit 0 only if all was right
Without it the mount stays, at /mnt/kvcfs-quickstart (data in /var/lib/kvcfs-quickstart).
TEXT
}

once=no
for arg in "$@"; do
  case $arg in
    --once) once=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown option '$arg'" >&2; usage >&2; exit 2 ;;
  esac
done

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kvcfs=$top/build/kvcfs
exec </dev/null

title() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
fail() { printf 'quickstart.sh: %s\n' "$*" >&2; exit 1; }
# expect WHAT COMMAND...: checks one promise.
expect() {
  local what=$1
  shift
  "$@" >/dev/null 2>&1 || fail "not as promised: $what (tried: $*)"
  note "ok: $what"
}
# Commands of the tour are shown as one would type them.
show() { printf '   $ %s\n' "${*/#$kvcfs/kvcfs}"; "$@" | sed 's/^/     /'; }
field() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
answers() { [[ -n $(cat "$mount/.kvcfs/version" 2>/dev/null) ]]; }

if [[ $(id -u) != 0 ]]; then fail "mounting with passthrough needs root; run it with sudo"; fi

title "Installing what is missing"
"$top/tools/deps/install.sh"
title "Building"
cd "$top"
cmake --preset release >/dev/null
cmake --build --preset release
if [[ ! -e /dev/fuse ]]; then modprobe fuse 2>/dev/null || true; fi
if [[ ! -e /dev/fuse ]]; then fail "no /dev/fuse here. In a container: --device /dev/fuse --cap-add SYS_ADMIN"; fi

scratch=$(mktemp -d /var/tmp/kvcfs-quickstart.XXXXXX)
if [[ $once == yes ]]; then
  mount=$scratch/mnt
  data=$scratch/data
  log=$scratch/log
else
  mount=/mnt/kvcfs-quickstart
  data=/var/lib/kvcfs-quickstart
  log=$data.log
fi

daemon=
# Ends the mount that this run started. Returns 1 if it did not go by itself.
stop() {
  local result=0 tries
  if [[ -n $daemon ]]; then
    timeout 60 "$kvcfs" unmount "$mount" >/dev/null 2>&1 || result=1
    for ((tries = 0; tries < 300; ++tries)); do
      kill -0 "$daemon" 2>/dev/null || break
      sleep 0.1
    done
    if kill -0 "$daemon" 2>/dev/null; then
      result=1
      kill "$daemon" 2>/dev/null || true
      umount --lazy "$mount" 2>/dev/null || true
    fi
    wait "$daemon" || result=1
    daemon=
  fi
  # Neither of these is left by a clean end: the filesystem, and the memory behind it.
  local left
  for left in "$mount" "$data/dram"; do
    if mountpoint -q "$left"; then result=1; umount --lazy "$left" || true; fi
  done
  return "$result"
}
finished=no
cleanup() {
  local status=$?
  if [[ $finished == no ]]; then
    stop || true
    if [[ -s $log ]]; then
      echo "quickstart.sh: the last lines of the log:" >&2
      tail -n 20 "$log" >&2
    fi
    if [[ $once == no ]]; then rmdir "$mount" 2>/dev/null || true; fi
  fi
  rm -rf --one-file-system "$scratch"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title "Mounting"
if [[ $once == no ]] && mountpoint -q "$mount"; then
  note "one from an earlier run is mounted; it is stopped first, and what it cached on disk is kept"
  "$kvcfs" unmount "$mount" || fail "could not unmount $mount: is a shell or a program still in it?"
fi
mkdir -p "$mount" "$data"
chmod 700 "$data"
note "\$ kvcfs mount $mount --data $data &"
setsid "$kvcfs" mount "$mount" --data "$data" >"$log" 2>&1 &
daemon=$!
for ((tries = 0; tries < 300; ++tries)); do
  if answers; then break; fi
  kill -0 "$daemon" 2>/dev/null || fail "kvcfs mount ended; its reason stands in the log"
  sleep 0.1
done
answers || fail "the mount did not answer within 30 s"
note "version $(head -n 1 "$mount/.kvcfs/version")"

# The main job: engines that share prefixes, asking for chains of blocks and writing what they miss.
title "Playing a trace of 200 requests"
block_bytes=65536  # 64KiB: what 200 requests leave fits any machine
ns=$mount/demo
mkdir -p "$ns"
trace=$scratch/trace.jsonl
"$kvcfs" trace synth --requests 200 --seed 1 --output "$trace"
play() {
  note "\$ kvcfs replay trace.jsonl --mount $ns --block-bytes 64KiB --json"
  "$kvcfs" replay "$trace" --mount "$ns" --block-bytes 64KiB --json >"$1"
  python3 - "$1" <<'PYTHON'
import json, sys
r = json.load(open(sys.argv[1]))
print(f"     {r['requests']} requests: {r['blocks_hit']} blocks found, {r['blocks_missed']} computed and written "
      f"(hit rate {r['hit_rate']:.2f}), {r['wrong_bytes']} wrong bytes")
print(f"     read {r['bytes_read'] / 2**20:.0f} MiB, wrote {r['bytes_written'] / 2**20:.0f} MiB in {r['seconds']:.2f} s; "
      f"p50: match {r['match_us']['p50']:.0f} us, block read {r['read_us']['p50']:.0f} us, "
      f"block write {r['write_us']['p50']:.0f} us")
PYTHON
}
play "$scratch/first.json"
note "and once more, now that the cache is warm"
play "$scratch/second.json"
expect "200 requests were served" [ "$(field "$scratch/first.json" requests)" = 200 ]
expect "prefixes were shared" [ "$(field "$scratch/first.json" blocks_hit)" -gt 0 ]
expect "the warm run missed nothing" [ "$(field "$scratch/second.json" blocks_missed)" = 0 ]
expect "no wrong bytes" [ "$(field "$scratch/first.json" wrong_bytes)$(field "$scratch/second.json" wrong_bytes)" = 00 ]

title "Looking at it with shell tools"
# A namespace lists its leaf chains; each is a directory of blocks in token order.
tip=$(find "$ns" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | grep -xE '[0-9a-f]{64}' | sort | sed -n 1p || true)
if [[ -z $tip ]]; then fail "the namespace lists no chain"; fi
note "chains that nothing extends: $(find "$ns" -mindepth 1 -maxdepth 1 -type d | grep -cE '/[0-9a-f]{64}$')"
note "\$ ls -l $ns/$tip | head"
find "$ns/$tip" -mindepth 1 | sort | sed -n 1,3p | xargs ls -l | sed "s:$ns/$tip/::; s/^/     /"
mapfile -t names < <(find "$ns/$tip" -mindepth 1 -printf '%f\n' | sort)
keys=("${names[@]#*-}")
expect "a chain ends with its tip" [ "${keys[-1]}" = "$tip" ]
expect "ordinals have no gap" [ "${names[-1]%%-*}" = "$(printf %08u "$((${#names[@]} - 1))")" ]
expect "a block is the same file under both names" [ "$ns/$tip/${names[0]}" -ef "$ns/by-key/${keys[0]}" ]
expect "cat gives the whole chain" [ "$(cat "$ns/$tip"/* | wc -c)" = "$((${#names[@]} * block_bytes))" ]

none=$(printf 'not cached' | sha256sum | cut -d ' ' -f 1)
expect "a key that is not cached is not there" [ ! -e "$ns/$none" ]
note "how much of a prompt is cached? ask with its keys, the last one unknown:"
note "\$ kvcfs lookup $ns KEY... | head -n 1"
"$kvcfs" lookup "$ns" "${keys[@]}" "$none" | sed -n '1s/^/     /p'
"$kvcfs" lookup "$ns" "${keys[@]}" "$none" --json >"$scratch/lookup.json"
expect "lookup finds the ${#keys[@]} leading keys" [ "$(field "$scratch/lookup.json" count)" = "${#keys[@]}" ]

note "a block of one's own, with dd and cp:"
dd if=/dev/urandom of="$scratch/block" bs=64K count=1 status=none
key=$(sha256sum "$scratch/block" | cut -d ' ' -f 1)
note "\$ cp block $ns/root/$key"
cp "$scratch/block" "$ns/root/$key"
expect "it is there, byte for byte" cmp "$scratch/block" "$ns/by-key/$key"
expect "its chain exists" [ -d "$ns/$key" ]
expect "a block is never overwritten" bash -c '! cp "$1" "$2"' - "$scratch/block" "$ns/root/$key"
note "an ordinary tree beside it, for engines that keep files:"
cp -r "$top/tools" "$ns/files/"
expect "files/ holds what was copied" diff -r "$top/tools" "$ns/files/tools"
rm -r "$ns/files/tools"

title "What it says of itself"
show "$kvcfs" stat "$mount"

if [[ $once == yes ]]; then
  title "Unmounting"
  stop || fail "the mount did not end cleanly"
  note "ok: unmounted"
  finished=yes
  echo
  echo "quickstart: all as promised, $SECONDS s"
  exit 0
fi

finished=yes
disown "$daemon"
cat <<TEXT

It works, and stays mounted. To look around:
  ls $ns
  ls -l $ns/$tip
  cat $mount/.kvcfs/stats.json
To stop it:
  $kvcfs unmount $mount
and to forget what it cached: rm -r $data
TEXT
