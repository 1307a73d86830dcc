#!/usr/bin/env bash
# Installs what the demo shows Underpass with: unmodified programs from Debian. Instant when everything is there. Without root the
# demo does with what there is, so this only says what it would be better with.
#
# The demo starts its own servers, with its own configuration; those that Debian's packages would start are neither needed nor
# wanted. Whatever this script installs is therefore not running when it ends, and does not start with the machine.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# program => the Debian package it comes in
declare -rA PACKAGE_OF=(
  [curl]=curl
  [ip]=iproute2
  [nginx]=nginx-light
  [python3]=python3
  [redis-benchmark]=redis-tools
  [redis-cli]=redis-tools
  [redis-server]=redis-server
)
# package => its service
declare -rA SERVICE_OF=([nginx-light]=nginx [redis-server]=redis-server)

say() { echo "demo-setup: $*" >&2; }

missing_packages() {
  local program
  for program in "${!PACKAGE_OF[@]}"; do
    command -v "$program" >/dev/null || echo "${PACKAGE_OF[$program]}"
  done | sort -u
}

# policy-rc.d is Debian's own switch against starting services from a package's scripts; 101 means "not allowed". A machine that
# has a policy of its own (a container image, usually) keeps it.
keep_services_from_starting() {
  local policy=/usr/sbin/policy-rc.d
  [[ ! -e $policy ]] || return 0
  # shellcheck disable=SC2064 # the path is known now
  trap "rm -f $policy" EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
}

# silence PACKAGE: its service, which was not there before, is stopped should it run, and does not start at boot.
silence() {
  local service=${SERVICE_OF[$1]:-}
  [[ -n $service ]] || return 0
  if [[ -d /run/systemd/system ]]; then
    systemctl disable --quiet --now "$service"
  else
    "/etc/init.d/$service" stop >/dev/null
    update-rc.d "$service" disable
  fi
}

readarray -t missing < <(missing_packages)
if [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
fi
if [[ $EUID -ne 0 ]]; then
  say "not root, so not installing ${missing[*]}; the demo does what it can without"
  exit 0
fi
say "installing ${missing[*]}"
keep_services_from_starting
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
for package in "${missing[@]}"; do
  silence "$package"
done
