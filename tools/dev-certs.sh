#!/usr/bin/env bash
# A certificate authority for tests and first steps, and certificates by it. Not for production: its key lies beside them.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/dev-certs.sh DIR node NAME [--days N]
       tools/dev-certs.sh DIR client NAME [NAMESPACE,...] [--days N]
Makes DIR/ca.pem (once) and DIR/NAME.pem with DIR/NAME.key, for
  kvcfs ... --tls-cert DIR/NAME.pem --tls-key DIR/NAME.key --tls-ca DIR/ca.pem
A node may hold blocks and own shards. A client may use the namespaces that are named, or all.
  --days N   how long it is valid (default 30; 0 or less: it has expired already)
TEXT
}

days=30
words=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --days)
      if [[ $# -lt 2 ]]; then echo "dev-certs.sh: --days wants a number" >&2; exit 2; fi
      days=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    --*) echo "dev-certs.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
if [[ ${#words[@]} -lt 3 ]]; then usage >&2; exit 2; fi
dir=${words[0]} role=${words[1]} name=${words[2]} namespaces=${words[3]:-}
case $role in
  node) uri="kvcfs://node/$name" ;;
  client) uri="kvcfs://client/$name${namespaces:+?namespaces=$namespaces}" ;;
  *) usage >&2; exit 2 ;;
esac

mkdir -p "$dir"
cd "$dir"
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A comma ends a value in openssl's configuration, unless it stands in a section of its own.
cat >"$work/ca.cnf" <<'TEXT'
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = kvcfs development authority
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
TEXT
cat >"$work/leaf.cnf" <<TEXT
[req]
distinguished_name = name
prompt = no
[name]
CN = $name
[leaf]
basicConstraints = CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = @names
[names]
URI.1 = $uri
DNS.1 = $name
TEXT

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

if [[ ! -e ca.pem ]]; then
  key ca.key
  openssl req -x509 -new -key ca.key -config "$work/ca.cnf" -days 3650 -out ca.pem
fi
key "$name.key"
openssl req -new -key "$name.key" -config "$work/leaf.cnf" -out "$work/leaf.csr"
validity=(-days "$days")
if [[ $days -le 0 ]]; then
  # `openssl x509` takes no dates; `ca` does.
  touch "$work/index.txt"
  cat >>"$work/leaf.cnf" <<TEXT
[ca]
default_ca = here
[here]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
TEXT
  openssl ca -batch -notext -config "$work/leaf.cnf" -cert ca.pem -keyfile ca.key -in "$work/leaf.csr" -extensions leaf \
    -startdate 20200101000000Z -enddate 20200201000000Z -out "$name.pem" 2>/dev/null
else
  openssl x509 -req -in "$work/leaf.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -extfile "$work/leaf.cnf" -extensions leaf \
    "${validity[@]}" -out "$name.pem" 2>/dev/null
fi
echo "$dir/$name.pem: $uri"
