#!/usr/bin/env bash
# Runs every fuzz target for SECONDS_EACH seconds (10), with what it has learned before, its corpus and the recordings as its
# beginning; or with RUNS_EACH inputs, always the same ones: from the corpus alone and with one seed. Needs no cargo-fuzz and no nightly compiler:
# libFuzzer comes as a crate, and coverage is a pass of the compiler. A finding is left as crash-* in .cache/fuzz.
#
#   TARGETS="hbone connect" scripts/fuzz.sh     only these
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${SECONDS_EACH:-10}
runs=${RUNS_EACH:-}
cache=$PWD/.cache/fuzz
mkdir -p "$cache"
echo '*' >.cache/.gitignore

# What cargo-fuzz passes as well, without a sanitizer: the code under test has no unsafe.
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table"
# With a target, the flags are not for build scripts.
target=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/fuzz

fuzz() { # CRATE TARGET SEEDS...
    local crate=$1 name=$2
    shift 2
    [[ " ${TARGETS:-$name} " == *" $name "* ]] || return 0
    local corpus=$cache/$crate-$name seeds=$crate/fuzz/corpus/$name limit="$seconds s" options=("-max_total_time=$seconds")
    [[ ! -d $seeds ]] || set -- "$seeds" "$@"
    if [[ -n $runs ]]; then
        corpus=$cache/fresh limit="$runs inputs" options=("-runs=$runs" -seed=1)
        rm -rf "$corpus"
    fi
    mkdir -p "$corpus"
    cargo build --quiet --release --target "$target" --manifest-path "$crate/fuzz/Cargo.toml" --bin "$name"
    echo "fuzz: $crate $name, $limit"
    local log=$cache/$name.log
    if ! "$CARGO_TARGET_DIR/$target/release/$name" "$corpus" "$@" -artifact_prefix="$cache/crash-$name-" \
        "${options[@]}" -max_len=8192 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "fuzz: $crate $name found something, see $cache" >&2
        exit 1
    fi
    grep -E 'stat::number_of_executed_units|cov: ' "$log" | tail -n 2
}

recordings=(xds-client/tests/recordings/*/)
fuzz xds-client response "${recordings[@]}"
fuzz xds-client policy
fuzz xds-client waypoint "${recordings[@]}"
fuzz certs spiffe
fuzz certs certificate
fuzz proxy hbone
fuzz proxy connect
fuzz proxy listeners
fuzz proxy proxy_protocol
fuzz proxy http_request
fuzz proxy http_answer
fuzz proxy http_sniff
fuzz proxy http_config
fuzz proxy http1
fuzz proxy jwt
fuzz proxy ext_authz
