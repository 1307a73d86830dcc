#!/usr/bin/env bash
# Builds what tests of the deployment use (tests/deploy: Helm, and the program that decodes Kubernetes objects strictly), once for each state of that
# module, into a cache outside the tree ($UNDERPASS_DEPLOY, else ~/.cache/underpass/deploy), and prints in which folder they are. A first build takes
# three minutes of CPU.
#
#   scripts/deploy-setup.sh           builds them if need be
#   scripts/deploy-setup.sh --where   prints where they are or will be, and builds nothing
set -euo pipefail
cd "$(dirname "$0")/../tests/deploy"

state=$(cat go.sum ./*.go | sha256sum)
place=${UNDERPASS_DEPLOY:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass/deploy}/${state:0:16}
# Where Go is when it is not on PATH.
export PATH="$PATH:/usr/local/go/bin"

build() {
  echo "deploy-setup: building $1 into $place" >&2
  nice -n 15 go build -buildvcs=false -ldflags='-s -w' -o "$place/$1.new" "$2" >&2
  mv "$place/$1.new" "$place/$1"
}

if [ "${1:-}" != --where ] && [ ! -x "$place/objects" ]; then
  mkdir -p "$place"
  exec 9>"$place/lock"
  # Another one may be building them.
  flock 9
  [ -x "$place/helm" ] || build helm helm.sh/helm/v3/cmd/helm
  [ -x "$place/objects" ] || build objects .
fi
echo "$place"
