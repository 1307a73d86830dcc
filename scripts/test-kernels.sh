#!/usr/bin/env bash
# Runs suites of tests on Debian's kernels under QEMU, with the binaries that are built here, each suite on clean
# links and on links that lose packets. Ends with 0 when nothing failed; a test may be skipped for nothing but what it
# found its kernel to lack.
#
#   KERNELS="6.1 6.12"     which (see kernels-setup.sh)
#   SUITES="ebpf capture"  which (see below), or SUITE:PATTERN for those of its tests that match
#   LINKS="clean|loss 1%"  what netem does to every veth, one after the other; clean is without netem
#   MACHINE_SECONDS        after which a machine is ended; TEST_SECONDS: a test
#   UNDERPASS_PATIENCE     by which the tests' time-outs are multiplied: an emulated processor is slow
#
# Results: TARGET/kernels/results.md, and for each kernel results (tab-separated), failures/, doctor and kernel-log
# (its errors).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

read -ra kernels <<<"${KERNELS:-6.1 6.12}"
read -ra suites <<<"${SUITES:-ebpf capture exactness}"
IFS='|' read -ra links <<<"${LINKS:-clean|loss 1%}"
export MACHINE_SECONDS=${MACHINE_SECONDS:-3600}
patience=${UNDERPASS_PATIENCE:-6}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/kernels

# suite => package and test of cargo, and variables for it.
declare -rA BINARY_OF=(
    [ebpf]="underpass-ebpf kernel"
    [capture]="underpass-tests capture"
    [exactness]="underpass-tests exactness"
    [endings]="underpass-tests endings"
    [kernel_tier]="underpass-tests kernel_tier"
    [applications]="underpass-tests applications"
)
declare -rA VARIABLES_OF=(
    [exactness]="UNDERPASS_CYCLES=${UNDERPASS_CYCLES:-60}"
    [kernel_tier]="UNDERPASS_CYCLES=${UNDERPASS_CYCLES:-100}"
)

say() { echo "test-kernels: $*" >&2; }

# The test binary of a suite, built if it is not.
binary_of() {
    local package test built
    [[ -n ${BINARY_OF[$1]:-} ]] || { say "no suite is called $1; there are: ${!BINARY_OF[*]}"; return 1; }
    read -r package test <<<"${BINARY_OF[$1]}"
    built=$("${CARGO:-cargo}" test --release --locked -p "$package" --test "$test" --no-run 2>&1) ||
        { echo "$built" >&2; return 1; }
    realpath "$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$built")"
}

# What inside.sh is to run, one line for each suite and kind of link.
list_runs() {
    local link entry suite pattern binary
    for link in "${links[@]}"; do
        for entry in "${suites[@]}"; do
            suite=${entry%%:*} pattern=.
            [[ $entry != *:* ]] || pattern=${entry#*:}
            binary=$(binary_of "$suite")
            printf '%s\t%s\t%s\t%s\t%s\n' "$suite" "$link" "$binary" "$pattern" \
                "UNDERPASS_PATIENCE=$patience ${VARIABLES_OF[$suite]:-}"
        done
    done
}

# What a machine wrote, as a table: a row for each test, a column for each kind of link.
table() {
    printf '## Linux %s\n\n| suite | test |' "$(cat "$cache/$1/release")"
    printf ' %s |' "${links[@]}"
    printf '\n|---|---|'
    printf '%0.s---|' "${links[@]}"
    printf '\n'
    awk -F '\t' -v links="$(IFS='|'; echo "${links[*]}")" '
        BEGIN { columns = split(links, link, "|") }
        !(($1, $3) in seen) { seen[$1, $3] = 1; suite[++rows] = $1; test[rows] = $3 }
        { said[$1, $3, $2] = $4 ($6 == "" ? "" : ": " $6) }
        END {
            for (row = 1; row <= rows; row++) {
                line = "| " suite[row] " | " test[row] " |"
                for (column = 1; column <= columns; column++) {
                    result = said[suite[row], test[row], link[column]]
                    line = line " " (result == "" ? "not run" : result) " |"
                }
                print line
            }
        }' "$2/results"
    printf '\n'
}

# What the doctor found there.
doctor() {
    printf 'underpass doctor:\n\n'
    sed 's/^/    /' "$1/doctor" 2>/dev/null || true
    printf '\n'
}

# Tests that failed, hung, were never reached, or were skipped for something else than their kernel.
failures() {
    awk -F '\t' '$4 == "FAILED" || $4 == "HUNG" || $4 == "skipped" && $6 !~ /^this kernel/' "$1/results"
    [[ -e $1/done ]] || echo "the machine did not come to the end of its suites"
}

say "building"
runs=$(list_runs)
cache=$(scripts/kernels-setup.sh)
[[ -x $target/release/underpass ]] || { say "$target/release/underpass is not built (make build)"; exit 1; }

mkdir -p "$out"
: >"$out/results.md"
status=0
for kernel in "${kernels[@]}"; do
    share=$out/$kernel
    rm -rf "$share"
    mkdir -p "$share"
    echo "$runs" >"$share/suites"
    install -m 755 scripts/kernels/inside.sh "$share/command"
    ln -s "$target/release/underpass" "$share/underpass"
    say "booting Linux $(cat "$cache/$kernel/release")"
    scripts/kernels/boot.sh "$cache/$kernel" "$share" || say "the machine was ended, or could not be started"
    touch "$share/results"
    { table "$kernel" "$share"; doctor "$share"; } >>"$out/results.md"
    failed=$(failures "$share")
    if [[ -n $failed ]]; then
        status=1
        printf 'Failed:\n\n%s\n\n' "$failed" >>"$out/results.md"
    fi
done
cat "$out/results.md"
exit "$status"
