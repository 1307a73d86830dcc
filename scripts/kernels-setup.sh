#!/usr/bin/env bash
# Fetches what `make test-kernels` boots, on a Debian machine: QEMU and kmod from Debian, and Debian's kernels,
# unpacked and not installed, into a cache outside the tree ($UNDERPASS_KERNELS, else ~/.cache/underpass/kernels): one
# folder for each, with its release's name in `release`, and a busybox for the way up. Does nothing, quickly, when all
# is there; KERNELS_UPDATE=1 looks for newer kernels.
#
# A kernel of another Debian than this machine's comes from this machine's own mirror: apt is asked, with sources and
# state of its own, so that the machine's stay as they are.
set -euo pipefail

# series => the Debian whose linux-image-amd64 it is
declare -rA SUITE_OF=([6.1]=bookworm [6.12]=trixie)
cache=${UNDERPASS_KERNELS:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/kernels}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
export PATH="$PATH:/usr/sbin:/sbin"

say() { echo "kernels-setup: $*" >&2; }

install_debian_packages() {
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v modprobe >/dev/null || missing+=(kmod)
    command -v xz >/dev/null || missing+=(xz-utils)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing packages: ${missing[*]}. Run this script as root, or install them by hand."
        exit 1
    fi
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Where this machine gets Debian from.
mirror() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }'
}

# apt_of SUITE COMMAND…: apt with nothing but one Debian, in a state of its own. The sandbox's user may not read the
# cache.
apt_of() {
    local state=$cache/apt/$1 command=$2
    "$command" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root "${@:3}"
}

prepare_apt() {
    local suite=$1 state=$cache/apt/$1 from
    from=$(mirror)
    if [ -z "$from" ]; then
        say "this machine gets no packages from a mirror of Debian: put kernels into $cache by hand (see fetch_kernel)"
        exit 1
    fi
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    echo "deb [signed-by=$keyring] $from $suite main" >"$state/sources.list"
    apt_of "$suite" apt-get update -qq
}

# fetch_package SUITE PACKAGE FOLDER: unpacks a package.
fetch_package() (
    mkdir -p "$3"
    cd "$3"
    apt_of "$1" apt-get download -qq "$2"
    dpkg-deb --extract ./*.deb .
    rm ./*.deb
)

fetch_kernel() {
    local series=$1 suite=${SUITE_OF[$1]} package release fresh
    [ -e "$cache/$series/release" ] && [ -z "${KERNELS_UPDATE:-}" ] && return
    prepare_apt "$suite"
    package=$(apt_of "$suite" apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    release=${package#linux-image-}
    [ "$(cat "$cache/$series/release" 2>/dev/null)" = "$release" ] && return
    say "fetching $package ($suite)"
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    fetch_package "$suite" "$package" "$fresh"
    # Newer packages have their modules where /lib leads to.
    [ -e "$fresh/lib" ] || ln -s usr/lib "$fresh/lib"
    depmod -b "$fresh" "$release"
    echo "$release" >"$fresh/release"
    rm -rf "${cache:?}/$series"
    mv "$fresh" "$cache/$series"
}

fetch_busybox() {
    local fresh suite=${SUITE_OF[6.1]}
    [ -x "$cache/busybox" ] && return
    prepare_apt "$suite"
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    fetch_package "$suite" busybox-static "$fresh"
    cp -L "$fresh/bin/busybox" "$cache/busybox"
    rm -rf "$fresh"
}

mkdir -p "$cache"
install_debian_packages
fetch_busybox
for series in "${!SUITE_OF[@]}"; do
    fetch_kernel "$series"
done
echo "$cache"
