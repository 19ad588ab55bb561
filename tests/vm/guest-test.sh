#!/usr/bin/env bash
# What all other guests rely on: a guest says what its command said and ends as it ended, and has the devices.
#   guest-test.sh DIR
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
said=$("$here/run-guest.sh" "$1" --disk 64 -- 'rdma-devices; rdma link; ls /dev/fuse /dev/nvme0n1 /dev/infiniband/*; echo done; exit 7')
code=$?
echo "$said"
if [[ $code == 77 ]]; then exit 77; fi
failed=0
for line in 'link rxe0/1 state ACTIVE' 'link rxe1/1 state ACTIVE' /dev/fuse /dev/nvme0n1 /dev/infiniband/uverbs1 \
  /dev/infiniband/rdma_cm; do
  if [[ $said != *"$line"* ]]; then echo "guest-test.sh: the guest has no $line"; failed=1; fi
done
if [[ $code != 7 ]]; then echo "guest-test.sh: the command ended with 7, the guest with $code"; failed=1; fi
exit "$failed"
