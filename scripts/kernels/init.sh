#!/bin/busybox sh
# shellcheck shell=dash
# The first process of an emulated machine (see boot.sh). It makes the machine a copy of this one under another
# kernel: the root is the host's, read-only, under a layer in memory, so that every path means what it means on the
# host and nothing that is done here reaches it. What is to come out is written to /mnt, the one folder of the host
# that is writable.
bb=/bin/busybox
fail() {
    $bb echo "machine: $*"
    $bb poweroff -f
}

$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r module; do
    $bb insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

nine=trans=virtio,version=9p2000.L,access=any,msize=500000
$bb mount -t 9p -o "$nine,ro,cache=loose" root /lower || fail "cannot mount the host's root"
$bb mount -t tmpfs memory /upper
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root ||
    fail "cannot cover the host's root"
$bb mount -t 9p -o "$nine" share /root/mnt || fail "cannot mount the shared folder"

for folder in proc sys dev; do
    $bb mount --move "/$folder" "/root/$folder"
done
$bb mkdir -p /root/dev/pts /root/dev/shm
$bb mount -t devpts devpts /root/dev/pts
$bb mount -t tmpfs memory /root/dev/shm
$bb mount -t tmpfs memory /root/run
$bb mount -t cgroup2 cgroups /root/sys/fs/cgroup
$bb echo +cpu >/root/sys/fs/cgroup/cgroup.subtree_control
$bb mount -t bpf bpf /root/sys/fs/bpf
$bb ln -s /proc/self/fd /root/dev/fd
$bb mkdir -p /root/lib/modules
$bb ln -sfn "$($bb cat /modules/home)" "/root/lib/modules/$($bb uname -r)"
# As the first process itself: where the kernel looks for modprobe is where this process has its root.
exec $bb switch_root /root /usr/bin/env -i \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb \
    sh -c 'ip link set lo up; ulimit -n 65536; /mnt/command; sync; echo o >/proc/sysrq-trigger; sleep 60' \
    </root/dev/null >/root/dev/console 2>&1
