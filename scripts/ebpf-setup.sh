#!/usr/bin/env bash
# Installs what `make ebpf` builds the eBPF programs with, on a fresh Debian: its rustc with the standard library for eBPF, LLVM, and
# bpf-linker (built from crates.io against that LLVM, which takes minutes). Nothing else needs any of it: the compiled programs are
# checked in. Does nothing, quickly, when all is there.
set -euo pipefail

llvm=22
linker=0.13.0
# Debian's own compiler has the eBPF target's library, which rustup's does not.
target_library=/usr/lib/rustlib/bpfel-unknown-none

say() { echo "ebpf-setup: $*" >&2; }

install_debian_packages() {
    local missing=()
    [ -x /usr/bin/rustc ] || missing+=(rustc-web)
    [ -d "$target_library" ] || missing+=(libstd-rust-web-dev-bpf)
    [ -x "/usr/lib/llvm-$llvm/bin/llvm-strip" ] || missing+=("llvm-$llvm")
    if ! has_linker; then
        # What bpf-linker is built with.
        local package
        for package in "llvm-$llvm-dev" "libpolly-$llvm-dev" zlib1g-dev libzstd-dev libxml2-dev build-essential; do
            dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
        done
    fi
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing packages: ${missing[*]}. Run this script as root, or install them by hand."
        exit 1
    fi
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

has_linker() {
    bpf-linker --version 2>/dev/null | grep -qx "bpf-linker $linker"
}

install_linker() {
    has_linker && return
    say "building bpf-linker $linker"
    PATH="/usr/lib/llvm-$llvm/bin:$PATH" LLVM_PREFIX="/usr/lib/llvm-$llvm" RUSTFLAGS="-L native=/usr/lib/llvm-$llvm/lib" \
        cargo install --quiet --locked bpf-linker --version "$linker" --no-default-features --features "llvm-$llvm"
}

export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
install_debian_packages
install_linker
