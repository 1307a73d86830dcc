#!/usr/bin/env bash
# Builds grpc-go's interoperability client and server, which try each other by gRPC's own test cases, once, into a cache outside the tree
# ($UNDERPASS_GRPC, else ~/.cache/underpass/grpc), and prints where the client is;
# the server is beside it. Their version, and those of what they are made of, are in tests/grpc.
#
#   scripts/grpc-setup.sh           builds them if need be
#   scripts/grpc-setup.sh --where   prints where it is or will be, and builds nothing
set -euo pipefail
cd "$(dirname "$0")/../tests/grpc"

state=$(sha256sum go.sum)
place=${UNDERPASS_GRPC:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/grpc}/${state:0:16}
# Where Go is when it is not on PATH.
export PATH="$PATH:/usr/local/go/bin"

if [ "${1:-}" != --where ] && [ ! -e "$place" ]; then
  mkdir -p "${place%/*}"
  exec 9>"$place.lock"
  # Another one may be building them.
  flock 9
  if [ ! -e "$place" ]; then
    echo "grpc-setup: building grpc-go's interop client and server into $place" >&2
    rm -rf "$place.new"
    mkdir "$place.new"
    nice -n 15 go build -buildvcs=false -ldflags='-s -w' -o "$place.new/" google.golang.org/grpc/interop/client google.golang.org/grpc/interop/server >&2
    # Both or none.
    mv "$place.new" "$place"
  fi
fi
echo "$place/client"
