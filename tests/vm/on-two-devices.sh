#!/bin/sh
# Runs a program over verbs, and fails unless it reached peers by both devices.
rdma-devices || exit 1
export KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs
"$@" >log 2>&1
code=$?
cat log
for device in rxe0 rxe1; do
  if ! grep -q "reached by verbs.*device=$device" log; then
    echo "on-two-devices.sh: nobody was reached by $device"
    code=1
  fi
done
exit "$code"
