#!/bin/sh
# A cluster of two servers on two soft-RoCE devices, and two mounts, in one guest: replays that check every byte, over verbs; a
# server is killed in the middle of one and comes back with what its NVMe tier has.
#   mounted-cluster.sh [REQUESTS]        needs etcd, kvcfs, mke2fs, /certs and an NVMe device
me=mounted-cluster.sh
requests=${1:-16}
data=/nvme
nvme=1280MiB
cluster="--cluster etcd://127.0.0.1:2379 --set cluster.etcd_tls=false --transport verbs --set cluster.one_sided=always"
. cluster-words.sh

rdma-devices || exit 1
# The shell has an mke2fs of its own.
/usr/bin/mke2fs -q -F -t ext4 /dev/nvme0n1 && mkdir /nvme && mount -t ext4 /dev/nvme0n1 /nvme || exit 1
etcd_at http://127.0.0.1:2379
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
