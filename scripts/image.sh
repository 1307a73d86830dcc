#!/usr/bin/env bash
# Builds the container image for one architecture, starts what is in it, and writes it as an OCI archive, target/image/underpass-ARCHITECTURE.tar,
# which any registry's tools take (skopeo copy oci-archive:FILE docker://REGISTRY/underpass:TAG).
#
#   scripts/image.sh [amd64|arm64]     PROFILE=dist is how it is shipped; release builds in a quarter of the time
#
# The program is linked statically, with glibc (the allocator, and the TLS library's assembly, are tested with it): names are looked up by
# /etc/resolv.conf and /etc/hosts alone, which glibc itself does since 2.34.
set -euo pipefail
cd "$(dirname "$0")/.."

architecture=${1:-amd64}
profile=${PROFILE:-dist}
sysroot=$(scripts/image-setup.sh "$architecture")
out=${CARGO_TARGET_DIR:-target}/image

# Only the target's own crates are linked statically; procedural macros can't be.
case $architecture in
    amd64)
        target=x86_64-unknown-linux-gnu
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
        start=()
        ;;
    arm64)
        target=aarch64-unknown-linux-gnu
        export RUSTC=/usr/bin/rustc
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static --sysroot $sysroot"
        start=(qemu-aarch64-static)
        ;;
esac
"${CARGO:-cargo}" build --profile "$profile" --locked -p underpass --target "$target"

root=$out/$architecture
rm -rf "$root"
mkdir -p "$root/etc/ssl/certs" "$root/run/underpass"
folder=$profile
[ "$profile" != dev ] || folder=debug
cp "${CARGO_TARGET_DIR:-target}/$target/$folder/underpass" "$root/underpass"
"$(command -v "${target%-unknown-linux-gnu}-linux-gnu-strip" || command -v strip)" "$root/underpass"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf 'root:x:0:0::/:/\nunderpass:x:65532:65532::/:/\n' >"$root/etc/passwd"
printf 'root:x:0:\nunderpass:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
if readelf --program-headers --wide "$root/underpass" | grep -q INTERP; then
    echo "image: $root/underpass is not static" >&2
    exit 1
fi
"${start[@]}" "$root/underpass" --version

# Neither a daemon nor a network nor anybody's storage: all of it is below target/image.
store=$(mktemp -d "$out/store.XXXXXX")
trap 'rm -rf "$store"' EXIT
buildah_here() { buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }
# One date for all files, so that the same program gives the same image.
buildah_here bud --quiet --isolation chroot --timestamp 0 --platform "linux/$architecture" -f deploy/image/Containerfile -t underpass "$out" >/dev/null
archive=$out/underpass-$architecture.tar
rm -f "$archive"
buildah_here push --quiet underpass "oci-archive:$archive:underpass"

# What is in the image, as the user that it names: it has to understand its role, and to say what it lacks.
if [ "$architecture" = amd64 ]; then
    container=$(buildah_here from underpass)
    buildah_here run --isolation chroot --env SERVICE_ACCOUNT=underpass "$container" -- /underpass validate --role waypoint
fi
echo "image: $archive, $(du -h "$archive" | cut -f1)"
