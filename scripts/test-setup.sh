#!/usr/bin/env bash
# Installs what the end-to-end tests run against: unmodified programs from Debian, the tools that build network namespaces, and
# those that look at what is captured in them, or interfere with it. Instant when everything is there. Nothing is left running:
# services are kept from starting while apt configures them, because the tests start their own, with their own configuration, on
# their own addresses.
set -euo pipefail

# program => the Debian package it comes in
declare -A PACKAGE_OF=(
  [bpftool]=bpftool
  [curl]=curl
  [faketime]=faketime
  [go]=golang-go
  [ip]=iproute2
  [iperf3]=iperf3
  [memcached]=memcached
  [memccapable]=libmemcached-tools
  [memcslap]=libmemcached-tools
  [nft]=nftables
  [nghttpd]=nghttp2-server
  [nginx]=nginx-light
  [node]=nodejs
  [nsenter]=util-linux
  [pip3]=python3-pip
  [python3]=python3
  [redis-benchmark]=redis-tools
  [redis-server]=redis-server
  [scp]=openssh-client
  [setpriv]=util-linux
  [setsid]=util-linux
  [ss]=iproute2
  [ssh]=openssh-client
  [ssh-keygen]=openssh-client
  [sshd]=openssh-server
  [unshare]=util-linux
  [wrk]=wrk
)
# Debian keeps PostgreSQL's server programs (and pgbench) out of PATH, one folder for each version.
POSTGRES_PROGRAMS='/usr/lib/postgresql/*/bin'

export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for program in "${!PACKAGE_OF[@]}"; do
  command -v "$program" >/dev/null || missing+=("${PACKAGE_OF[$program]}")
done
# shellcheck disable=SC2086 # the pattern is meant to be expanded
for program in initdb pgbench; do
  compgen -G "$POSTGRES_PROGRAMS/$program" >/dev/null || missing+=(postgresql postgresql-contrib)
done

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
readarray -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" -ne 0 ]; then
  echo "test-setup: missing packages: ${missing[*]}. Run this script as root, or install them by hand." >&2
  exit 1
fi
echo "test-setup: installing ${missing[*]}"

# policy-rc.d is Debian's own switch against starting services from a package's scripts; 101 means "not allowed". A machine that
# has a policy of its own (a container image, usually) keeps it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
