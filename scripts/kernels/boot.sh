#!/usr/bin/env bash
# boot.sh KERNEL SHARE: boots the kernel in the folder KERNEL (of kernels-setup.sh) under QEMU without acceleration
# and runs SHARE/command there, as root; SHARE is /mnt in the machine. Ends when the machine does, or ends the machine
# after MACHINE_SECONDS.
set -euo pipefail
kernel=$(realpath "$1")
share=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
release=$(cat "$kernel/release")
busybox=$(dirname "$kernel")/busybox

initramfs=$(mktemp -d)
trap 'rm -rf "$initramfs"' EXIT

# The modules that it takes to reach the root, each after those that it needs.
modules() {
    modprobe -d "$kernel" -S "$release" --show-depends --all virtio_pci 9pnet_virtio 9p overlay |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

lay_out() {
    local path name
    cd "$initramfs"
    mkdir -p bin proc sys dev root lower upper modules
    cp "$busybox" bin/busybox
    install -m 755 "$here/init.sh" init
    echo "$kernel/lib/modules/$release" >modules/home
    for path in $(modules); do
        name=$(basename "${path%.xz}")
        if [[ $path == *.xz ]]; then xz -dc "$path" >"modules/$name"; else cp "$path" "modules/$name"; fi
        echo "$name" >>modules/order
    done
    "$busybox" find . | "$busybox" cpio -o -H newc >"$share/initramfs" 2>/dev/null
}
(lay_out)

# The mitigations would cost what the emulated processor, which has none of the faults, gains nothing by. The kernel's test of its timer fails, and the
# boot with it, where the emulator is not scheduled for a moment: the timer is believed.
timeout --kill-after=10 "${MACHINE_SECONDS:-3600}" nice -n 10 qemu-system-x86_64 \
    -nodefaults -no-user-config -machine pc -accel tcg,thread=multi -cpu max -smp 2 -m "${MACHINE_MEMORY:-3G}" \
    -display none -serial stdio -no-reboot \
    -kernel "$kernel/boot/vmlinuz-$release" -initrd "$share/initramfs" \
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off no_timer_check nokaslr net.ifnames=0" \
    -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=root,mount_tag=root \
    -fsdev "local,id=share,path=$share,security_model=none" \
    -device virtio-9p-pci,fsdev=share,mount_tag=share </dev/null
