#!/usr/bin/env bash
# Builds a collector of OpenTelemetry (tests/collector: its own parts, unmodified), which a test tells of spans, once for each state of that module's sources,
# into a cache outside the tree ($UNDERPASS_COLLECTOR, else ~/.cache/underpass/collector), and prints where it is.
#
#   scripts/collector-setup.sh           builds it if need be
#   scripts/collector-setup.sh --where   prints where it is or will be, and builds nothing
set -euo pipefail
cd "$(dirname "$0")/../tests/collector"

state=$(cat main.go go.mod go.sum | sha256sum)
place=${UNDERPASS_COLLECTOR:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/collector}/${state:0:16}
# Where Go is when it is not on PATH.
export PATH="$PATH:/usr/local/go/bin"

if [ "${1:-}" != --where ] && [ ! -e "$place" ]; then
  mkdir -p "${place%/*}"
  exec 9>"$place.lock"
  # Another one may be building it.
  flock 9
  if [ ! -e "$place" ]; then
    echo "collector-setup: building a collector of OpenTelemetry into $place" >&2
    nice -n 15 go build -buildvcs=false -ldflags='-s -w' -o "$place.new" . >&2
    mv "$place.new" "$place"
  fi
fi
echo "$place"
