#!/usr/bin/env bash
# Certificates for a first cluster: makes those of the names that are not there yet. Not for production: see tools/dev-certs.sh.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: docker/certs.sh DIR NAME...
  NAME          a node: may hold blocks and own shards; also the name of an etcd as it is connected to
  client:NAME   a mount without tiers of its own
Makes DIR/ca.pem and DIR/NAME.pem with DIR/NAME.key, valid for 365 days. What is there stays.
TEXT
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then usage; exit 0; fi
if [[ $# -lt 2 || $1 == -* ]]; then usage >&2; exit 2; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$1
shift
# Beside this file in the image, in tools/ in the tree.
make=$here/dev-certs.sh
if [[ ! -e $make ]]; then make=$here/../tools/dev-certs.sh; fi

for word in "$@"; do
  name=${word#client:} role=node
  if [[ $word == client:* ]]; then role=client; fi
  if [[ -s $dir/$name.pem && -s $dir/$name.key ]]; then continue; fi
  "$make" "$dir" "$role" "$name" --days 365
done
