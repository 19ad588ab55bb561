#!/usr/bin/env bash
# Boots the guest of build-guest.sh, runs a command in it, prints what it prints, and exits as it did.
#   run-guest.sh DIR [--program PATH]... [--file PATH:PLACE]... [--memory MIB] [--disk MIB] [--certs] [--seconds N] [--cpus N]
#                [--hosts 2] -- COMMAND...
# Programs come with their libraries and are in the guest's PATH; a file or folder goes to PLACE; --certs puts certificates of nodes
# n1 to n3, node1 to node3 and clients mount11 and mount12 into /certs; --disk gives it an NVMe device. --hosts 2: two guests, joined
# by a network of their own, run the command, each with its number in $KVC_HOST; when one fails the other is ended. Exit 77: no guest
# here; 124: it took longer than --seconds (default 300); 125: it ended without an answer. A guest has 2 CPUs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:?usage: run-guest.sh DIR [OPTION]... -- COMMAND...}
shift
programs=() files=() memory=1024 disk=0 seconds=300 certs=no hosts=1 cpus=2
while [[ $# -gt 0 ]]; do
  case $1 in
    --program) programs+=("$2"); shift 2 ;;
    --file) files+=("$2"); shift 2 ;;
    --memory) memory=$2; shift 2 ;;
    --disk) disk=$2; shift 2 ;;
    --certs) certs=yes; shift ;;
    --seconds) seconds=$2; shift 2 ;;
    --hosts) hosts=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --) shift; break ;;
    *) echo "run-guest.sh: unknown option '$1'" >&2; exit 2 ;;
  esac
done
[[ $# -gt 0 ]] || { echo "run-guest.sh: no command" >&2; exit 2; }

"$here/build-guest.sh" "$dir" || exit $?
work=$(mktemp -d "${TMPDIR:-/tmp}/kvc-guest-XXXXXX")
trap 'rm -rf "$work"' EXIT

"$here/pack.sh" "$work/root" "${programs[@]}"
for file in "${files[@]}"; do
  mkdir -p "$work/root$(dirname "${file##*:}")"
  cp -rL "${file%:*}" "$work/root${file##*:}"
done
if [[ $certs == yes ]]; then
  for who in node\ n{1,2,3} node\ node{1,2,3} client\ mount{11,12}; do
    # shellcheck disable=SC2086
    "$here/../../tools/dev-certs.sh" "$work/root/certs" $who >/dev/null
  done
fi
printf '%s\n' "$*" >"$work/root/command.sh"
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/own.cpio"
# The kernel reads one archive after another.
cat "$dir/base.cpio" "$work/own.cpio" >"$work/initrd"
rm -rf "$work/root" "$work/own.cpio"

# KVM where it works: that it is there says little inside of other virtual machines, so a guest is tried once for each folder.
arguments() {
  printf '%s\n' -M q35 -smp "$cpus" -m "$memory" -nodefaults -display none -no-reboot -kernel "$dir/vmlinuz" \
    -initrd "$1" -append "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on${4:+ KVC_HOST=$4}" -serial "file:$2" \
    -device virtio-serial -chardev "file,id=out,path=$3" -device virtserialport,chardev=out,name=out
}
accelerator() {
  if [[ ! -w /dev/kvm ]]; then echo tcg; return; fi
  if [[ ! -e $dir/accelerator ]]; then
    local all
    mkdir -p "$work/try"
    echo true >"$work/try/command.sh"
    (cd "$work/try" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/try.cpio"
    cat "$dir/base.cpio" "$work/try.cpio" >"$work/try.initrd"
    mapfile -t all < <(arguments "$work/try.initrd" "$work/try.console" "$work/try.out")
    timeout 20 qemu-system-x86_64 "${all[@]}" -accel kvm -cpu host -net none >/dev/null 2>&1 || true
    if grep -q 'KVC-GUEST-EXIT=0' "$work/try.out" 2>/dev/null; then echo kvm; else echo tcg; fi >"$dir/accelerator"
  fi
  cat "$dir/accelerator"
}
with=$(accelerator)
# Without ERMS the kernel copies words, not bytes: soft-RoCE reads then tear no words, as no RDMA device does.
options=(-accel tcg,thread=multi -cpu max,erms=off,fsrm=off)
if [[ $with == kvm ]]; then options=(-accel kvm -cpu host); fi

# boot HOST: in the background; its pid is in pids.
pids=()
boot() {
  local host=$1 all role='' of_host=("${options[@]}")
  if [[ $disk != 0 ]]; then
    truncate -s "${disk}M" "$work/disk$host"
    of_host+=(-drive "file=$work/disk$host,if=none,id=disk,format=raw,cache=unsafe" -device nvme,serial=kvc0,drive=disk)
  fi
  if [[ $hosts == 2 ]]; then
    local server=on
    role=$host
    if [[ $host == 2 ]]; then server=off; fi
    of_host+=(-netdev "stream,id=net,server=$server,addr.type=unix,addr.path=$work/net"
      -device "virtio-net-pci,netdev=net,mac=52:54:00:77:00:0$host,host_mtu=4200,romfile=")
  else
    of_host+=(-nic none)
  fi
  : >"$work/out$host"
  mapfile -t all < <(arguments "$work/initrd" "$work/console$host" "$work/out$host" "$role")
  # However this script ends, the guests end with it.
  setpriv --pdeathsig TERM timeout --foreground --kill-after 10 "$seconds" setpriv --pdeathsig KILL qemu-system-x86_64 "${all[@]}" \
    "${of_host[@]}" </dev/null &
  pids[host]=$!
}
# report HOST STATUS: what the guest said, and what it ended with in `code`.
report() {
  local host=$1 status=$2
  if [[ $hosts != 1 ]]; then echo "==== host $host"; fi
  sed '/^KVC-GUEST-EXIT=/d' "$work/out$host" | tr -d '\r'
  code=$(sed -n 's/^KVC-GUEST-EXIT=//p' "$work/out$host" | tail -n 1 | tr -d '\r')
  echo "run-guest.sh: $with, $(grep -ao 'guest: up after.*' "$work/console$host" | head -n 1 | tr -d '\r')"
  # What the kernel complained about is worth a look, whatever the command thought.
  grep -aE 'BUG:|Oops|WARNING:|module .* cannot' "$work/console$host" || true
  if [[ $status == 124 ]]; then
    echo "run-guest.sh: not done after $seconds s; its console ends:"; tail -n 20 "$work/console$host"
    code=124
  elif [[ -z $code ]]; then
    echo "run-guest.sh: qemu exit $status, no answer; its console ends:"; tail -n 40 "$work/console$host"
    code=125
  fi
}

boot 1
if [[ $hosts == 2 ]]; then
  while [[ ! -S $work/net ]] && kill -0 "${pids[1]}" 2>/dev/null; do sleep 0.1; done
  boot 2
fi
# The first that fails has the say; the others are not waited for.
result=0
for ((left = hosts; left > 0; left--)); do
  status=0
  wait -n -p ended "${pids[@]}" || status=$?
  for host in "${!pids[@]}"; do if [[ ${pids[host]} == "$ended" ]]; then break; fi; done
  unset "pids[host]"
  report "$host" "$status"
  if [[ $code != 0 && $result == 0 ]]; then
    result=$code
    for pid in "${pids[@]}"; do kill "$pid"; done
  fi
done
exit "$result"
