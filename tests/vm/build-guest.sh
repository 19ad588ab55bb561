#!/usr/bin/env bash
# Makes a guest that has soft-RoCE, FUSE and NVMe: DIR/vmlinuz and DIR/base.cpio, of Debian's own kernel and busybox.
# May be run again: what is there is kept. Needs no root.
#   build-guest.sh DIR       exit 77 and a reason: it cannot be made here
set -euo pipefail

dir=${1:?usage: build-guest.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cannot() { echo "SKIPPED: no guest can be made here: $*"; exit 77; }

for tool in qemu-system-x86_64 busybox depmod dpkg apt-get rdma ip; do
  command -v "$tool" >/dev/null || cannot "$tool is missing; tools/deps/install.sh --vm installs it"
done
[[ $(dpkg --print-architecture) == amd64 ]] || cannot "guests are amd64 only"
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9

# The kernel: whatever version linux-image-amd64 means today.
if [[ ! -e $dir/vmlinuz ]]; then
  package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }')
  [[ -n $package ]] || cannot "apt knows no linux-image-amd64; run apt-get update"
  rm -rf "$dir/kernel"
  mkdir -p "$dir/kernel"
  (cd "$dir/kernel" && apt-get -q download "$package" >download.log 2>&1) ||
    cannot "apt-get download $package: $(tail -n 1 "$dir/kernel/download.log")"
  dpkg -x "$dir"/kernel/*.deb "$dir/kernel/root"
  rm "$dir"/kernel/*.deb
  depmod -b "$dir/kernel/root" "$(ls "$dir/kernel/root/lib/modules")"
  cp "$dir"/kernel/root/boot/vmlinuz-* "$dir/vmlinuz"
  rm -f "$dir/base.cpio"
fi

if [[ -e $dir/base.cpio && -z $(find "$here" -type f -newer "$dir/base.cpio") ]]; then exit 0; fi
release=$(ls "$dir/kernel/root/lib/modules")
modules=$dir/kernel/root/lib/modules/$release
root=$dir/base
rm -rf "$root"
mkdir -p "$root"/{bin,usr/bin,dev,etc,proc,run,sys,tmp,modules}

# Modules in the order of loading. rxe asks for crc32 by name, so nothing depends on crc32_generic; what is built into this kernel
# has no file.
wanted="virtio_pci virtio_console virtio_net crc32c_generic crc32_generic dummy veth fuse nvme ext4 ib_uverbs rdma_cm rdma_ucm rdma_rxe"
declare -A listed=()
add() {
  local path=$1 file name
  if [[ -n ${listed[$path]:-} ]]; then return 0; fi
  listed[$path]=1
  for file in $(sed -n "s|^$path: *||p" "$modules/modules.dep" | tr ' ' '\n' | tac); do add "$file"; done
  name=$(basename "$path")
  case $name in
    *.ko) cp "$modules/$path" "$root/modules/$name" ;;
    *.ko.xz) xz -dc "$modules/$path" >"$root/modules/${name%.xz}" ;;
    *.ko.zst) zstd -qdc "$modules/$path" >"$root/modules/${name%.zst}" ;;
  esac
  name=${name%.xz}
  echo "${name%.zst}" >>"$root/modules/order"
}
for name in $wanted; do
  path=$(sed -nE "s#^([^:]*/${name//_/[-_]}\.ko(\.xz|\.zst)?):.*#\1#p" "$modules/modules.dep" | head -n 1)
  if [[ -n $path ]]; then
    add "$path"
  elif ! grep -qE "/${name//_/[-_]}\.ko" "$modules/modules.builtin"; then
    cannot "kernel $release has no module $name"
  fi
done

cp "$(command -v busybox)" "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"
install -m 755 "$here/devices.sh" "$root/usr/bin/rdma-devices"
"$here/pack.sh" "$root" ip rdma sh-libs:ibverbs
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$dir/base.cpio.new"
rm -rf "$root"
mv "$dir/base.cpio.new" "$dir/base.cpio"
