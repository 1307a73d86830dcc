#!/usr/bin/env bash
# Installs what `underpass-bench` compares Underpass with, on a fresh Debian: HAProxy and ip(8), and
# the programs whose latency it compares, from Debian, Envoy by
# scripts/envoy-setup.sh; and what asks for HTTP: h2load from Debian, oha from its crate. Does nothing, quickly, when
# all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

envoy_version=1.40.0
oha_version=1.16.0
cache=.cache/bench

say() { echo "bench-setup: $*" >&2; }

install_debian_packages() {
    local missing=()
    command -v /usr/sbin/haproxy >/dev/null || missing+=(haproxy)
    PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null || missing+=(iproute2)
    [ -x "$cache/envoy-$envoy_version/envoy/_bin/envoy" ] || python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    command -v h2load >/dev/null || missing+=(nghttp2-client)
    command -v redis-server >/dev/null || missing+=(redis-server)
    command -v redis-benchmark >/dev/null || missing+=(redis-tools)
    compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || missing+=(postgresql postgresql-contrib)
    [ ${#missing[@]} -eq 0 ] && return
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { say "not root and no sudo: please install ${missing[*]}"; exit 1; }
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    # The bench starts its own HAProxy, Redis and PostgreSQL; policy-rc.d keeps Debian's services from starting (101 means "not allowed").
    local policy=/usr/sbin/policy-rc.d made_policy=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
        made_policy=yes
    fi
    local status=0
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || status=$?
    [ -z "$made_policy" ] || "${sudo[@]}" rm -f "$policy"
    return "$status"
}

install_oha() {
    [ "$("$cache/oha/bin/oha" --version 2>/dev/null)" = "oha $oha_version" ] && return
    say "building oha $oha_version"
    "${CARGO:-cargo}" install --quiet --locked --root "$cache/oha" --version "$oha_version" oha
}

install_debian_packages
scripts/envoy-setup.sh
install_oha
