#!/usr/bin/env bash
# Boots the guest of build-guest.sh, runs a command in it, prints what it prints, and exits as it did.
#   run-guest.sh DIR [--program PATH]... [--file PATH:PLACE]... [--memory MIB] [--disk MIB] [--certs] [--seconds N] -- COMMAND...
# Programs come with their libraries and are in the guest's PATH; a file or folder goes to PLACE; --certs puts
# certificates of nodes n1 to n3, node1 to node3 and clients mount11 and mount12 into /certs; --disk gives it an NVMe device. Exit 77: no guest here;
# 124: it took longer than --seconds (default 300); 125: it ended without an answer.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:?usage: run-guest.sh DIR [OPTION]... -- COMMAND...}
shift
programs=() files=() memory=1024 disk=0 seconds=300 certs=no extra=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --program) programs+=("$2"); shift 2 ;;
    --file) files+=("$2"); shift 2 ;;
    --memory) memory=$2; shift 2 ;;
    --disk) disk=$2; shift 2 ;;
    --certs) certs=yes; shift ;;
    --seconds) seconds=$2; shift 2 ;;
    --qemu) extra+=("$2"); shift 2 ;;
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
  printf '%s\n' -M q35 -smp 2 -m "$memory" -nodefaults -display none -no-reboot -kernel "$dir/vmlinuz" \
    -initrd "$1" -append "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on" -serial "file:$2" \
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
if [[ $disk != 0 ]]; then
  truncate -s "${disk}M" "$work/disk"
  options+=(-drive "file=$work/disk,if=none,id=disk,format=raw,cache=unsafe" -device nvme,serial=kvc0,drive=disk)
fi
if [[ ${#extra[@]} == 0 ]]; then extra=(-nic none); fi

mapfile -t all < <(arguments "$work/initrd" "$work/console" "$work/out")
: >"$work/out"
status=0
timeout --foreground "$seconds" qemu-system-x86_64 "${all[@]}" "${options[@]}" ${extra[*]} </dev/null || status=$?
sed '/^KVC-GUEST-EXIT=/d' "$work/out" | tr -d '\r'
code=$(sed -n 's/^KVC-GUEST-EXIT=//p' "$work/out" | tail -n 1 | tr -d '\r')
echo "run-guest.sh: $with, $(grep -ao 'guest: up after.*' "$work/console" | head -n 1 | tr -d '\r')"
if [[ $status == 124 ]]; then
  echo "run-guest.sh: not done after $seconds s; its console ends:"; tail -n 20 "$work/console"
  exit 124
fi
if [[ -z $code ]]; then
  echo "run-guest.sh: qemu exit $status, no answer; its console ends:"; tail -n 40 "$work/console"
  exit 125
fi
# What the kernel complained about is worth a look, whatever the command thought.
grep -aE 'BUG:|Oops|WARNING:|module .* cannot' "$work/console" || true
exit "$code"
