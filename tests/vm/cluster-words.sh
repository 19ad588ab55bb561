# For `.`: what the scripts in guests say, wait for and count. Who uses it has set:
#   cluster   words of etcd and the transport      data    folder of the servers' data
#   nvme      size of a server's NVMe tier         me      this script's name
#   requests  how many of the trace are played
failed=0
say() { echo "== $(cut -d ' ' -f 1 /proc/uptime) s: $*"; }
fail() {
  echo "$me: $*"
  failed=1
}
end() {
  if [ "$failed" != 0 ]; then
    for log in /tmp/*.log "$data"/n*/*.log /tmp/m*/*.log; do
      if [ -s "$log" ]; then echo "--- the end of $log"; tail -n 25 "$log"; fi
    done
  fi
  exit "$failed"
}
# eventually SECONDS COMMAND...: how long only bounds the test.
eventually() {
  left=$1
  shift
  while ! "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    if [ "$left" -le 0 ]; then return 1; fi
    sleep 1
  done
}
# sum FILE NAME [LABEL]: of a metric's samples, without fractions.
sum() {
  awk -v name="$2" -v label="$3" 'index($1, name) == 1 && (label == "" || index($1, label)) { all += $2 }
    END { printf "%d\n", all }' "$1"
}
of_server() { timeout 30 wget -q -O "/tmp/server$1" "http://127.0.0.1:946$1/metrics" && sum "/tmp/server$1" "$2" "$3"; }
of_mount() { sum "/mnt$1/.kvcfs/metrics" "$2" "$3"; }
way=kvcfs_meta_copy_read_bytes_total

tls() { echo --tls-cert "/certs/$1.pem" --tls-key "/certs/$1.key" --tls-ca /certs/ca.pem; }
# etcd_at URL WORD...: an etcd of its own, until it answers.
etcd_at() {
  url=$1
  shift
  peer=http://127.0.0.1:2380
  etcd --data-dir /tmp/etcd --unsafe-no-fsync --listen-client-urls "$url" --advertise-client-urls "$url" \
    --listen-metrics-urls http://127.0.0.1:2381 --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
    --initial-cluster "default=$peer" "$@" >/tmp/etcd.log 2>&1 &
  eventually 120 timeout 30 wget -q -O - http://127.0.0.1:2381/health || { fail "etcd does not answer"; end; }
}
serve() { # NUMBER
  # shellcheck disable=SC2046,SC2086
  kvcfs serve $cluster $(tls "n$1") --name "n$1" --listen "10.77.0.$1:7470" --data "$data/n$1" --dram 128MiB --nvme "$nvme" \
    --metrics-address "127.0.0.1:946$1" --daemon >"/tmp/serve$1" 2>&1 || { cat "/tmp/serve$1"; return 1; }
  sed -n 's/.* pid=//p' "/tmp/serve$1" >"/tmp/pid$1"
}
# A small tier, so that most is read from the servers. CPUs that are kept awake are, in a guest, taken from others.
mount_one() { # NUMBER
  # shellcheck disable=SC2046,SC2086
  kvcfs mount "/mnt$1" $cluster $(tls "mount1$1") --data "/tmp/m$1" --dram 8MiB --nvme 0 --client-only --daemon \
    --set fs.fuse_keep_awake=false >"/tmp/mount$1" 2>&1 || { cat "/tmp/mount$1"; return 1; }
}
# replay NUMBER WORDS...: checks every byte that it reads.
replay() {
  number=$1
  shift
  kvcfs replay /tmp/trace --mount "/mnt$number/demo" --block-bytes 64KiB --limit "$requests" --json "$@"
}
