#!/usr/bin/env bash
# Runs every fuzz target for SECONDS_EACH seconds (10), with what it has learned before and the recordings as its
# beginning. Needs no cargo-fuzz: libFuzzer comes as a crate, and coverage is a pass of the compiler. A finding is
# left as crash-* in .cache/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${SECONDS_EACH:-10}
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
    local corpus=$cache/$crate-$name
    mkdir -p "$corpus"
    cargo build --quiet --release --target "$target" --manifest-path "$crate/fuzz/Cargo.toml" --bin "$name"
    echo "fuzz: $crate $name, $seconds s"
    local log=$cache/$name.log
    if ! "$CARGO_TARGET_DIR/$target/release/$name" "$corpus" "$@" -artifact_prefix="$cache/crash-$name-" \
        -max_total_time="$seconds" -max_len=8192 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "fuzz: $crate $name found something, see $cache" >&2
        exit 1
    fi
    grep -E 'stat::number_of_executed_units|cov: ' "$log" | tail -n 2
}

recordings=(xds-client/tests/recordings/*/)
fuzz xds-client response "${recordings[@]}"
fuzz xds-client policy
fuzz certs spiffe
fuzz certs certificate
