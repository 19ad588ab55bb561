#!/usr/bin/env bash
# Copies programs, and every library that they load, to where the guest finds them: ROOT/usr/bin and the libraries' own paths.
#   pack.sh ROOT PROGRAM...     PROGRAM: a path, or a name in PATH; sh-libs:ibverbs: the drivers of soft-RoCE in user space
set -euo pipefail

root=${1:?usage: pack.sh ROOT PROGRAM...}
shift

libraries_of() {
  local library
  { ldd "$1" 2>/dev/null || true; } | sed -nE 's/^[^/]*(\/[^ ]+) \(0x.*/\1/p' | while read -r library; do
    if [[ ! -e $root$library ]]; then
      mkdir -p "$root$(dirname "$library")"
      cp -L "$library" "$root$library"
    fi
  done
}

mkdir -p "$root/usr/bin"
for program in "$@"; do
  if [[ $program == sh-libs:ibverbs ]]; then
    driver=$(ls /usr/lib/*/libibverbs/librxe-*.so | head -n 1)
    mkdir -p "$root$(dirname "$driver")" "$root/etc/libibverbs.d"
    cp "$driver" "$root$driver"
    cp /etc/libibverbs.d/rxe.driver "$root/etc/libibverbs.d/"
    libraries_of "$driver"
    continue
  fi
  path=$program
  if [[ $path != */* ]]; then path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program"); fi
  libraries_of "$path"
  # Without its symbols a test is a third as long; scripts are copied as they are.
  strip -o "$root/usr/bin/$(basename "$path")" "$path" 2>/dev/null || cp -L "$path" "$root/usr/bin/"
  chmod 755 "$root/usr/bin/$(basename "$path")"
done
