#!/bin/sh
# A cluster of two servers on two soft-RoCE devices, and two mounts, in one guest: replays that check every byte, over verbs; a
# server is killed in the middle of one and comes back with what its NVMe tier has.
#   mounted-cluster.sh [REQUESTS]        needs etcd, kvcfs, mke2fs, /certs and an NVMe device
requests=${1:-16}
block=64KiB
failed=0
say() { echo "== $(cut -d ' ' -f 1 /proc/uptime) s: $*"; }
fail() { echo "mounted-cluster.sh: $*"; failed=1; }
end() {
  if [ "$failed" != 0 ]; then
    for log in /tmp/*.log /nvme/*/*.log /tmp/m*/*.log; do
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
tls() { echo --tls-cert "/certs/$1.pem" --tls-key "/certs/$1.key" --tls-ca /certs/ca.pem; }
cluster="--cluster etcd://127.0.0.1:2379 --set cluster.etcd_tls=false --transport verbs --set cluster.one_sided=always"

serve() { # NUMBER
  # shellcheck disable=SC2046,SC2086
  kvcfs serve $cluster $(tls "n$1") --name "n$1" --listen "10.77.0.$1:7470" --data "/nvme/n$1" --dram 128MiB --nvme 1280MiB \
    --metrics-address "127.0.0.1:946$1" --daemon >"/tmp/serve$1" 2>&1 || { cat "/tmp/serve$1"; return 1; }
  sed -n 's/.* pid=//p' "/tmp/serve$1" >"/tmp/pid$1"
}
mount_one() { # NUMBER; a small tier, so that most is read from the servers
  # shellcheck disable=SC2046,SC2086
  kvcfs mount "/mnt$1" $cluster $(tls "mount1$1") --data "/tmp/m$1" --dram 8MiB --nvme 0 --client-only --daemon \
    >"/tmp/mount$1" 2>&1 || { cat "/tmp/mount$1"; return 1; }
}
replay() { # NUMBER WORDS...
  number=$1
  shift
  kvcfs replay /tmp/trace --mount "/mnt$number/demo" --block-bytes "$block" --limit "$requests" --json "$@"
}
of_server() { wget -q -O "/tmp/server$1" "http://127.0.0.1:946$1/metrics" && sum "/tmp/server$1" "$2" "$3"; }
of_mount() { sum "/mnt$1/.kvcfs/metrics" "$2" "$3"; }
way=kvcfs_meta_copy_read_bytes_total

rdma-devices || exit 1
# The shell has an mke2fs of its own.
/usr/bin/mke2fs -q -F -t ext4 /dev/nvme0n1 && mkdir /nvme && mount -t ext4 /dev/nvme0n1 /nvme || exit 1
etcd --data-dir /tmp/etcd --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380 >/tmp/etcd.log 2>&1 &
eventually 120 wget -q -O - http://127.0.0.1:2379/health || { fail "etcd does not answer"; end; }
if ! { serve 1 && serve 2; }; then fail "no servers"; end; fi
say "two servers"
if ! { mount_one 1 && mount_one 2; }; then fail "no mounts"; end; fi
say "two mounts"
kvcfs trace synth --requests "$requests" --seed 3 --sessions 8 --documents 8 --system-prompts 2 --output /tmp/trace
mkdir /mnt1/demo && setfattr -n user.kvc.replicas -v 2 /mnt1/demo || fail "no namespace"
eventually 60 test -d /mnt2/demo || fail "the other mount does not see the namespace"

replay 1 || fail "the first mount's replay"
say "written by one mount"
replay 2 || fail "the second mount's replay"
one_sided=$(of_mount 2 $way one_sided)
called=$(of_mount 2 $way call)
say "read by the other: $one_sided bytes one-sided, $called by calls"
if [ "$one_sided" -lt 1000000 ]; then fail "next to nothing was read one-sided"; fi
if [ "$(of_mount 2 kvcfs_rdma_device_read_bytes_total)" -lt 1000000 ]; then fail "next to nothing came by the device"; fi
grep -h "reached by verbs" /tmp/m1/*.log /tmp/m2/*.log /nvme/*/*.log >/tmp/reached
for device in rxe0 rxe1; do
  if ! grep -q "device=$device" /tmp/reached; then fail "nobody was reached by $device"; fi
done

# Everything that is dirty reaches NVMe before the server dies: what comes back is the segments'.
clean() { [ "$(of_server 1 kvcfs_fs_dirty_bytes)" = 0 ]; }
eventually 120 clean || fail "what is dirty does not reach NVMe"
before=$one_sided
replay 2 --seed 5 >/tmp/replayed 2>&1 &
player=$!
more() { [ "$(of_mount 2 $way one_sided)" -gt "$before" ] || ! kill -0 $player; }
eventually 300 more || fail "nothing more was read one-sided"
kill -9 "$(cat /tmp/pid1)"
umount -l /nvme/n1/dram
say "a server was killed, and its memory is gone"
wait $player || fail "the replay during which a server was killed"
cat /tmp/replayed
say "the replay is over"
eventually 60 serve 1 || fail "the server does not come back"
say "it is back: $(cat /tmp/serve1)"
replay 1 --seed 6 || fail "a replay after it came back"
# Both write back what is dirty and lose their memory: whatever is still found then comes from NVMe.
for number in 1 2; do
  pid=$(cat "/tmp/pid$number")
  gone() { ! kill -0 "$pid"; }
  kill "$pid"
  eventually 120 gone || fail "server $number does not stop"
  umount -l "/nvme/n$number/dram"
done
for number in 1 2; do eventually 60 serve "$number" || fail "server $number does not come back"; done
of_both() { echo $(($(of_server 1 "$@") + $(of_server 2 "$@"))); }
# A replay during which nobody had the time to answer finds nothing.
for try in 1 2 3 4 5; do
  replay 2 --seed "1$try" || fail "a replay after both came back"
  from_nvme=$(of_both kvcfs_fs_copy_reads_total nvme)
  if [ "$from_nvme" != 0 ]; then break; fi
done
say "read from NVMe: $from_nvme blocks"
if [ "$from_nvme" = 0 ]; then fail "nothing was read from NVMe"; fi
end
