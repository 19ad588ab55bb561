#!/bin/sh
# Soft-RoCE devices with jumbo frames. A guest that is alone has two: rxe0 on kvc0 (10.77.0.1) and rxe1 on kvc1 (10.77.0.2). One of
# two hosts has rxe0 on its NIC: 10.77.0.1 or 10.77.0.2.
set -e  # busybox has an ip of its own, which its shell prefers
if [ -n "$KVC_HOST" ]; then
  /usr/bin/ip addr add "10.77.0.$KVC_HOST/24" dev eth0
  /usr/bin/ip link set eth0 mtu 4200 up
  rdma link add rxe0 type rxe netdev eth0
  exit 0
fi
/usr/bin/ip link add name kvc0 mtu 4200 type veth peer name kvc1 mtu 4200
/usr/bin/ip addr add 10.77.0.1/24 dev kvc0
/usr/bin/ip addr add 10.77.0.2/24 dev kvc1
/usr/bin/ip link set kvc0 up
/usr/bin/ip link set kvc1 up
rdma link add rxe0 type rxe netdev kvc0
rdma link add rxe1 type rxe netdev kvc1
