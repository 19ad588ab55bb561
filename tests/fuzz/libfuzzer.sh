#!/usr/bin/env bash
# Fuzzes one parser with libFuzzer, guided by coverage: needs clang 14 and its runtime (libclang-rt-14-dev).
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/fuzz/libfuzzer.sh TARGET [SECONDS]
  TARGET   the name of a *_fuzz.cc in tests/fuzz
  SECONDS  how long (default 60); what it found stays in build-fuzz/
TEXT
}

if [[ $# -lt 1 ]]; then usage >&2; exit 2; fi
if [[ $1 == -h || $1 == --help ]]; then usage; exit 0; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ ! -e tests/fuzz/$1.cc ]]; then echo "libfuzzer.sh: no tests/fuzz/$1.cc" >&2; exit 2; fi
clang=$(command -v clang++-14 || command -v clang++) || { echo "libfuzzer.sh: no clang here" >&2; exit 2; }
sources=(rdma/wire.cc rdma/frame_parser.cc rdma/transport.cc rdma/tls.cc base/crc32c.cc base/result.cc)
libraries=(-lfmt -lisal -lssl -lcrypto)
if [[ $1 == cluster_message_fuzz ]]; then
  sources+=(meta/cluster_messages.cc meta/name_messages.cc meta/membership.cc meta/etcd_client.cc meta/serving_right.cc base/log.cc)
  read -ra httplib < <(pkg-config --cflags --libs cpp-httplib)
  libraries+=("${httplib[@]}")
fi
if [[ $1 == stored_bytes_fuzz ]]; then
  sources+=(iouring/segment_format.cc meta/block_records.cc meta/copy_records.cc fs/file_record.cc)
fi
if [[ $1 == text_fuzz ]]; then
  sources+=(base/config.cc base/read_file.cc base/size.cc base/block_key.cc tools/client.cc tools/metrics_text.cc tools/trace.cc)
  # As Debian built it: made anew from its headers it asserts where it should report.
  read -ra toml < <(pkg-config --cflags --libs tomlplusplus)
  libraries+=("${toml[@]}")
fi
mkdir -p "build-fuzz/$1/corpus"
"$clang" -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. -DFMT_SHARED -o "build-fuzz/$1/fuzz" \
  "tests/fuzz/$1.cc" tests/fuzz/libfuzzer_entry.cc "${sources[@]}" "${libraries[@]}"
cd "build-fuzz/$1"
exec ./fuzz -max_total_time="${2:-60}" -max_len=65536 corpus
