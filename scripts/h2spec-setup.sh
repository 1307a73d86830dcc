#!/usr/bin/env bash
# Builds h2spec, which tries a server of HTTP/2 by what RFC 9113 says, once, into a cache outside the tree ($UNDERPASS_H2SPEC, else
# ~/.cache/underpass/h2spec), and prints where it is. Its version, and those of what it is made of, are in tests/h2spec (Go's module proxy has no later
# one: from 2.3 on its tags are none that a module may have).
#
#   scripts/h2spec-setup.sh           builds it if need be
#   scripts/h2spec-setup.sh --where   prints where it is or will be, and builds nothing
set -euo pipefail
cd "$(dirname "$0")/../tests/h2spec"

state=$(sha256sum go.sum)
place=${UNDERPASS_H2SPEC:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/h2spec}/${state:0:16}
# Where Go is when it is not on PATH.
export PATH="$PATH:/usr/local/go/bin"

if [ "${1:-}" != --where ] && [ ! -x "$place/h2spec" ]; then
  mkdir -p "$place"
  exec 9>"$place/lock"
  # Another one may be building it.
  flock 9
  if [ ! -x "$place/h2spec" ]; then
    echo "h2spec-setup: building h2spec into $place" >&2
    nice -n 15 go build -buildvcs=false -ldflags='-s -w' -o "$place/h2spec.new" github.com/summerwind/h2spec/cmd/h2spec >&2
    mv "$place/h2spec.new" "$place/h2spec"
  fi
fi
echo "$place/h2spec"
