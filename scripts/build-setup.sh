#!/usr/bin/env bash
# Installs what building needs beside the Rust toolchain, on a fresh Debian: a C compiler (for the allocator) and the linter
# of our shell scripts. Does nothing, quickly, when both are there.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v shellcheck >/dev/null || missing+=(shellcheck)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "build-setup: missing packages: ${missing[*]}. Run this script as root, or install them by hand." >&2
    exit 1
fi
echo "build-setup: installing ${missing[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
