#!/usr/bin/env bash
# The secrets of the manifests, on stdout, with certificates for trying it out. Nodes and mounts have one each, so that a mount
# never sees a node's key.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: docker/kubernetes/make-secret.sh DIR [--servers N] [--namespace NAMESPACE] | kubectl apply -f -
  DIR            where certificates are kept (made if missing); the authority's key stays there and is in no secret
  --servers N    as many as servers.yaml has replicas (default 3)
TEXT
}

servers=3
namespace=kvcfs
words=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --servers | --namespace)
      if [[ $# -lt 2 ]]; then echo "make-secret.sh: $1 wants a value" >&2; exit 2; fi
      if [[ $1 == --servers ]]; then servers=$2; else namespace=$2; fi
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "make-secret.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
if [[ ${#words[@]} != 1 || ! $servers =~ ^[1-9][0-9]*$ ]]; then usage >&2; exit 2; fi
dir=${words[0]}

names=()
for ((i = 0; i < servers; ++i)); do names+=("kvcfs-$i"); done
"$(dirname "${BASH_SOURCE[0]}")/../certs.sh" "$dir" etcd "${names[@]}" client:mount >&2

# secret SECRET NAME...
secret() {
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: Opaque\ndata:\n' "$1" "$namespace"
  shift
  local name file
  printf '  ca.pem: %s\n' "$(base64 -w 0 "$dir/ca.pem")"
  for name in "$@"; do
    for file in "$name.pem" "$name.key"; do printf '  %s: %s\n' "$file" "$(base64 -w 0 "$dir/$file")"; done
  done
}
secret kvcfs-tls etcd "${names[@]}"
secret kvcfs-mount-tls mount
