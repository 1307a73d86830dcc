#!/usr/bin/env bash
# Builds the istiod that the tests run against (tests/istiod: Istio's own, unmodified, as a Go module), once for each state of that
# module's sources, into a cache outside the tree ($UNDERPASS_ISTIOD, else ~/.cache/underpass/istiod), and prints where it is. The
# first build takes four minutes of CPU and downloads 0.8 GB of modules; later ones of the same sources take no time.
#
#   scripts/istiod-setup.sh           builds it if need be
#   scripts/istiod-setup.sh --where   prints where it is or will be, and builds nothing
set -euo pipefail
cd "$(dirname "$0")/../tests/istiod"

cache=${UNDERPASS_ISTIOD:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/istiod}
# Where Go is when it is not on PATH: from its own archive, or from Debian's packages of one version.
export PATH="$PATH:/usr/local/go/bin"
# From this version on, Go fetches the one that go.mod asks for by itself.
oldest_go=21

say() { echo "istiod-setup: $*" >&2; }

sources() { find . -type f \( -name '*.go' -o -name go.mod -o -name go.sum \) -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; }

# The minor version of a Go, or nothing.
minor_version() { "$1" version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p'; }

find_go() {
  local candidate minor
  for candidate in go /usr/lib/go-*/bin/go; do
    minor=$(minor_version "$candidate")
    if [ "${minor:-0}" -ge "$oldest_go" ]; then
      echo "$candidate"
      return
    fi
  done
}

install_go() {
  if [ "$(id -u)" -ne 0 ]; then
    say "needs Go 1.$oldest_go or later (Debian: golang-go). Run this script as root, or install it by hand."
    exit 1
  fi
  say "installing golang-go"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
}

build() {
  local go fresh
  go=$(find_go)
  if [ -z "$go" ]; then
    install_go
    go=$(find_go)
    [ -n "$go" ] || { say "this machine's golang-go is older than 1.$oldest_go: put a newer Go on PATH"; exit 1; }
  fi
  say "building istiod into $1: minutes, if Istio's packages are not in Go's cache"
  fresh=$(mktemp -d "$cache/build.XXXXXX")
  # shellcheck disable=SC2064 # this folder, whatever is built next
  trap "rm -rf '$fresh'" EXIT
  nice -n 15 "$go" build -buildvcs=false -ldflags='-s -w' -o "$fresh/istiod-harness" . >&2
  mkdir -p "$1"
  mv "$fresh/istiod-harness" "$1/istiod-harness"
}

state=$(sources | sha256sum)
place=$cache/${state:0:16}
if [ "${1:-}" != --where ] && [ ! -x "$place/istiod-harness" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  # Another one may be building it.
  flock 9
  [ -x "$place/istiod-harness" ] || build "$place"
fi
echo "$place/istiod-harness"
