#!/bin/sh
# A cluster of two hosts: two guests that share a network and nothing else, each with a soft-RoCE device on its own NIC. Runs in both
# ($KVC_HOST is 1 or 2). Host 1 has etcd, a server and a mount, on which a chain and a trace are written; all of it is matched and read
# on host 2, over queue pairs. Host 2 serves, too, and gets its copies; then it goes off in the middle of a replay on host 1, as in a
# power cut, and host 1 still has every byte.
#   two-hosts.sh [REQUESTS]              needs etcd, kvcfs, setfattr, /certs
me="two-hosts.sh, host $KVC_HOST"
requests=${1:-6}
data=/tmp
nvme=0
cluster="--cluster etcd://10.77.0.1:2379 --set cluster.etcd_tls=false --transport verbs --set cluster.one_sided=always"
blocks=12
block=65536
. cluster-words.sh
# The other host need not wait for what will not come.
fail() {
  echo "$me: $*"
  failed=1
  end
}

# Hosts tell each other how far they are by files that they serve; waiting is bounded by how long guests may run.
heard() { timeout 20 wget -q -O - "http://10.77.0.$((3 - KVC_HOST)):8080/$1"; }
await() { eventually 900 heard "$1" || fail "the other host never told '$1'"; }
tell() { mv "$1" "/tmp/told/${2:-$1}"; }

chain_at() { [ "$(kvcfs lookup "/mnt$1/demo" --keys-file /tmp/keys | sed -n 's/ of .* cached.*//p')" = "$blocks" ]; }
# same_chain NUMBER COMMAND...: the whole chain at a mount, against what COMMAND KEY prints, byte for byte.
same_chain() {
  number=$1
  shift
  eventually 300 chain_at "$number" || fail "the chain is not matched: $(kvcfs lookup "/mnt$number/demo" --keys-file /tmp/keys)"
  while read -r key; do
    # Who answers too late is a miss, and is asked again; what is read is right.
    eventually 120 cp "/mnt$number/demo/by-key/$key" read || fail "block $key is not read"
    "$@" "$key" | cmp - read || fail "block $key is another one"
  done </tmp/keys
}
# shellcheck disable=SC2046,SC2086
status() { kvcfs cluster status ${cluster%% --transport*} $(tls "mount1$KVC_HOST") | tee /tmp/status; }
# of_status NODE COLUMN
of_status() { awk -v node="$1" -v column="$2" '$1 == node && $2 == "up" { print $column }' /tmp/status; }

mkdir /tmp/told
cd /tmp || exit 1
rdma-devices || exit 1
httpd -p "10.77.0.$KVC_HOST:8080" -h /tmp/told || exit 1

# extend SECONDS: one block more. What a cluster that is busy does not take is written again.
extend() {
  parent=$key
  key=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
  head -c "$block" /dev/urandom >"chain/$key"
  eventually "$1" written
}
written() { [ -e "/mnt1/demo/by-key/$key" ] || { cp "chain/$key" "/mnt1/demo/$parent/$key" && [ -e "/mnt1/demo/by-key/$key" ]; }; }
of_chain() { cat "/tmp/chain/$1"; }
of_other() { heard "chain/$1"; }

first_host() {
  # Without TLS: handshakes are what takes longest without KVM. All between the hosts' nodes is with it.
  etcd_at http://10.77.0.1:2379
  serve 1 && mount_one 1 || fail "no server and mount"
  # A cluster that has just begun may be busy.
  mkdir /mnt1/demo && eventually 60 setfattr -n user.kvc.block_bytes -v "$block" /mnt1/demo &&
    eventually 60 setfattr -n user.kvc.replicas -v 2 /mnt1/demo || fail "no namespace"
  say "host 1 serves"

  mkdir chain
  key=root
  for _ in $(seq "$blocks"); do
    extend 120 || fail "block $key is not written"
    echo "$key" >>keys
  done
  kvcfs trace synth --requests "$requests" --seed 4 --sessions 3 --documents 2 --system-prompts 1 --output trace
  replay 1 || fail "the replay on host 1"
  # A block is read one-sided when its slot is registered.
  eventually 60 status
  copies=$(of_status n1 7)
  exposed() { [ "$(of_server 1 kvcfs_fs_slots_exposed_total)" -ge "$copies" ]; }
  eventually 300 exposed || fail "host 1 does not expose all of its $copies copies"
  echo "$copies" >copies
  cp -r chain trace keys copies told/
  touch written
  tell written
  say "host 1 has written a chain of $blocks blocks and a trace"

  await joined
  say "the other host has a copy of everything; replays until it is off"
  touch playing
  tell playing
  round=0
  tip=$key
  while heard joined >/dev/null; do
    round=$((round + 1))
    key=$tip
    # What is written to a host that goes off may fail; wrong bytes are never read.
    extend 1 || say "block $key is not written"
    replay 1 --seed "$round" >replayed 2>&1 || say "a replay says so: $(grep -A 3 -E 'failed_calls|kvcfs' replayed)"
    grep -q '"wrong_bytes": 0,' replayed || fail "replay $round: $(cat replayed)"
  done
  say "host 2 is off, after $round replays"
  cat replayed
  off() { status | grep -q '^away .*n2' && grep -q '256 of 256' /tmp/status; }
  eventually 300 off || fail "the cluster does not see it: $(cat /tmp/status)"
  say "and the cluster knows it"
  # A mount that has seen nothing yet: whatever it answers, the server on this host has answered.
  mount_one 2 || fail "no other mount"
  same_chain 2 of_chain
  replay 2 || fail "the replay on host 1 when it is alone"
  say "host 1 alone has the whole chain"
}

second_host() {
  await written
  for name in trace keys copies; do heard "$name" >"$name"; done
  mount_one 2 || fail "no mount"
  eventually 60 test -d /mnt2/demo || fail "host 2 does not see the namespace"
  counters=/sys/class/infiniband/rxe0/ports/1/hw_counters
  before=$(cat $counters/rcvd_pkts)
  replay 2 >replayed || fail "the replay on host 2"
  cat replayed
  if grep -q '"blocks_hit": 0,' replayed; then fail "nothing of what host 1 wrote was found"; fi
  same_chain 2 of_other
  say "host 2 has read trace and chain: $(of_mount 2 $way one_sided) bytes one-sided, $(of_mount 2 $way call) by calls"
  # All of it is host 1's: nobody else serves yet.
  if [ "$(of_mount 2 $way)" -lt $((blocks * block)) ]; then fail "less was read than the chain has"; fi
  if [ "$(of_mount 2 $way one_sided)" -lt 1000000 ]; then fail "next to nothing was read one-sided"; fi
  if [ "$(of_mount 2 kvcfs_rdma_device_read_bytes_total)" -lt 1000000 ]; then fail "next to nothing came by the device"; fi
  grep -h "reached by verbs" /tmp/m2/*.log | grep "peer=10.77.0.1:7470 device=rxe0" || fail "host 1 was not reached by rxe0"
  rdma resource show qp link rxe0 | grep "RC.*RTS" || fail "no queue pair is connected"
  # A packet has at most 4096 bytes of it.
  packets=$(($(cat $counters/rcvd_pkts) - before))
  say "soft-RoCE received $packets packets from the other host"
  if [ $((packets * 4096)) -lt 1000000 ]; then fail "next to nothing came by soft-RoCE's packets"; fi

  serve 2 || fail "no server on host 2"
  say "host 2 serves"
  accepted() { of_server 2 kvcfs_fs_copies_accepted_bytes_total; }
  came() { [ "$(accepted)" -ge $(($(cat copies) * block)) ]; }
  eventually 600 came || fail "host 2 got $(accepted) bytes of $(cat copies) copies"
  copied() {
    status | grep -q '^repair  *0 ' && [ -n "$(of_status n2 7)" ] && [ "$(of_status n1 7)" = "$(of_status n2 7)" ]
  }
  eventually 600 copied || fail "host 2 does not get its copies: $(cat /tmp/status)"
  say "host 2 has copies: $(of_status n2 7)"
  before=$(accepted)
  touch joined
  tell joined
  await playing
  more() { [ "$(accepted)" -gt "$before" ]; }
  eventually 600 more || fail "host 1 writes nothing to host 2"
  # The guest goes off at the end of this script: server and mount are not asked.
  say "host 2 goes off"
}

if [ "$KVC_HOST" = 1 ]; then first_host; else second_host; fi
end
