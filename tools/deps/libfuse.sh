#!/usr/bin/env bash
# Builds libfuse 3.17.2 as a static library from Debian's source package, for hosts whose own libfuse is older than 3.17
# and so has no passthrough (Debian 12 has 3.14). Nothing outside the prefix and the cache is touched.
set -euo pipefail

# 3.17.2 is what Debian 13 has; tools/deps/install.sh takes Debian's binary package there.
version=3.17.2
tarball=fuse3_$version.orig.tar.gz
sha256=3d932431ad94e86179e5265cddde1d67aa3bb2fb09a5bd35c641f86f2b5ed06f
pool=pool/main/f/fuse3

# cmake/FindLibfuse.cmake has the same default, as KVC_LIBFUSE_PREFIX.
prefix=/opt/kvcfs-deps/libfuse-$version
cache=${XDG_CACHE_HOME:-/var/cache}/kvcfs
check_only=no

usage() {
  cat <<TEXT
usage: tools/deps/libfuse.sh [--prefix DIR] [--check]
  --prefix DIR  where to install (default $prefix);
                tell CMake with -DKVC_LIBFUSE_PREFIX=DIR
  --check       do nothing; exit 0 if it is installed there
TEXT
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --prefix)
      if [[ $# -lt 2 || $2 != /* ]]; then echo "libfuse.sh: --prefix wants an absolute path" >&2; exit 2; fi
      prefix=$2; shift 2 ;;
    --check) check_only=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "libfuse.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
  esac
done

say() { echo "libfuse.sh: $*" >&2; }

# The stamp is the last thing written, so a half-done installation does not count.
stamp=$prefix/.sha256
if [[ -f $stamp && $(<"$stamp") == "$sha256" && -f $prefix/lib/libfuse3.a ]]; then exit 0; fi
if [[ $check_only == yes ]]; then exit 1; fi

# Debian mirrors of this machine, best first, one a line.
mirrors() {
  {
    apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Origin: Debian' 'Label: Debian'
    apt-get indextargets --format '$(SITE)' 'Identifier: Packages'
  } 2>/dev/null | awk '!seen[$0]++' | while read -r site; do
    case $site in
      mirror+file:* | mirror:file:*)
        # A list of mirrors, as cloud images have it.
        awk '/^[a-z]/ { print $1 }' "${site#*file:}" 2>/dev/null || true ;;
      *) echo "$site" ;;
    esac
  done | sed 's:/*$::'
}

good() { [[ -f $1 ]] && echo "$sha256  $1" | sha256sum --check --status; }

source_file=$cache/$tarball
if ! good "$source_file"; then
  mkdir -p "$cache"
  fetched=$source_file.part.$$
  trap 'rm -f "$fetched" "$fetched.FAILED"' EXIT
  tried=()
  for site in $(mirrors); do
    tried+=("$site")
    say "fetching $tarball from $site"
    # apt's own fetcher, so that proxies and credentials of apt's configuration hold.
    if /usr/lib/apt/apt-helper -o APT::Sandbox::User=root -o Acquire::Retries=3 \
        download-file "$site/$pool/$tarball" "$fetched" "SHA256:$sha256" >&2 && good "$fetched"; then
      mv "$fetched" "$source_file"
      break
    fi
  done
  rm -f "$fetched" "$fetched.FAILED"
  trap - EXIT
  if ! good "$source_file"; then
    say "could not get $tarball (sha256 $sha256)."
    say "  tried, in $pool: ${tried[*]:-no mirror in the configuration of apt}"
    say "  If the mirrors have dropped it: take that file from any mirror or snapshot of Debian 13 (source package"
    say "  fuse3 $version), put it at $source_file and run this again."
    say "  To go on without passthrough: apt-get install libfuse3-dev, then build; kvcfs then uses classic FUSE."
    exit 1
  fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -xf "$source_file" -C "$work" --strip-components=1 --one-top-level=source

log=$work/log
if ! {
  meson setup "$work/build" "$work/source" --prefix "$prefix" --libdir lib --buildtype release \
    --default-library static -Dexamples=false -Dutils=false -Dtests=false &&
    meson compile -C "$work/build" &&
    DESTDIR="$work/stage" meson install -C "$work/build"
} >"$log" 2>&1 </dev/null; then
  cat "$log" >&2
  say "the build of libfuse $version failed; the log is above"
  exit 1
fi

echo "$sha256" >"$work/stage$prefix/.sha256"
mkdir -p "$(dirname "$prefix")"
rm -rf "$prefix"
cp -a "$work/stage$prefix" "$prefix.part.$$"
mv "$prefix.part.$$" "$prefix"
say "libfuse $version is in $prefix"
