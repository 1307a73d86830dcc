#!/usr/bin/env bash
# image-setup.sh ARCHITECTURE: installs what building the container image of amd64 or arm64 needs, on Debian. Quick when it is there.
#
# buildah makes images without a daemon. A program for arm64 is cross-compiled by Debian's rustc, whose library for arm64 is unpacked into a cache
# outside the tree, from Debian's package of exactly the version that is installed here (installing it would need arm64's whole base system).
set -euo pipefail
architecture=${1:?amd64 or arm64}

say() { echo "image-setup: $*" >&2; }

install() {
    local missing=() pair
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || missing+=("${pair##*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing packages: ${missing[*]}. Run this script as root, or install them by hand."
        exit 1
    fi
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Where the library for arm64 is, as a sysroot of rustc; printed.
sysroot_of_arm64() {
    local version place fresh package=libstd-rust-web-dev
    version=$(dpkg-query --show --showformat '${Version}' "$package")
    place=${XDG_CACHE_HOME:-$HOME/.cache}/underpass/arm64/$version
    if [ ! -d "$place" ]; then
        say "fetching $package $version for arm64"
        mkdir -p "$(dirname "$place")"
        fresh=$(mktemp -d "$(dirname "$place")/fetch.XXXXXX")
        # shellcheck disable=SC2064 # this folder
        trap "rm -rf '$fresh'" EXIT
        # Lists and cache of its own, so that this machine's apt stays as it is.
        mkdir -p "$fresh/lists/partial" "$fresh/cache/archives/partial" "$fresh/deb" "$fresh/unpacked"
        cat >"$fresh/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures {"arm64";};
APT::Sandbox::User "root";
Dir::State::Lists "$fresh/lists";
Dir::State::status "/dev/null";
Dir::Cache "$fresh/cache";
CONF
        APT_CONFIG=$fresh/apt.conf apt-get update -qq
        (cd "$fresh/deb" && APT_CONFIG=$fresh/apt.conf apt-get download -qq "$package=$version")
        dpkg -x "$fresh"/deb/*.deb "$fresh/unpacked"
        mkdir -p "$fresh/sysroot/lib"
        mv "$fresh/unpacked/usr/lib/rustlib" "$fresh/sysroot/lib/rustlib"
        mv "$fresh/sysroot" "$place"
    fi
    echo "$place"
}

# The file that tells that a package is there, and the package.
install /usr/bin/buildah=buildah /etc/ssl/certs/ca-certificates.crt=ca-certificates
case $architecture in
    amd64) ;;
    arm64)
        install /usr/bin/rustc=rustc-web /usr/bin/aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu \
            /usr/bin/aarch64-linux-gnu-g++=g++-aarch64-linux-gnu /usr/aarch64-linux-gnu/lib/libc.a=libc6-dev-arm64-cross \
            /usr/bin/qemu-aarch64-static=qemu-user-static
        sysroot_of_arm64
        ;;
    *)
        say "there are images for amd64 and arm64, none for $architecture"
        exit 1
        ;;
esac
