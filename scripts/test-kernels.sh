#!/usr/bin/env bash
# Runs suites of tests on Debian's kernels under QEMU, with the binaries that are built here, each suite on clean
# links and on links that lose packets. Ends with 0 when nothing failed; a test may be skipped for nothing but what it
# found its kernel to lack.
#
#   KERNELS="6.1 6.12"     which (see kernels-setup.sh)
#   SUITES="ebpf capture"  which (see below), or SUITE:PATTERN for those of its tests that match; by default all on clean
#                          links, and what is about bytes and ends on lossy ones too
#   LINKS="clean|loss 1%"  what netem does to every veth, one after the other; clean is without netem
#   MACHINE_SECONDS        after which a machine is ended; TEST_SECONDS: a test (200 pods come and go in 550 s on 6.1)
#   UNDERPASS_PATIENCE     by which the tests' time-outs are multiplied: an emulated processor is slow
#
# Results: TARGET/kernels/results.md, and for each kernel results (tab-separated), failures/, doctor and kernel-log
# (its errors).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

read -ra kernels <<<"${KERNELS:-6.1 6.12}"
IFS='|' read -ra links <<<"${LINKS:-clean|loss 1%}"
export MACHINE_SECONDS=${MACHINE_SECONDS:-7200}
patience=${UNDERPASS_PATIENCE:-12}
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

suites_on() {
    case $1 in
    clean) echo "ebpf capture exactness kernel_tier applications:nginx" ;;
    *) echo "exactness kernel_tier:exactness|^ends applications:nginx_serves.*pods" ;;
    esac
}

# What inside.sh is to run, one line for each suite and kind of link.
list_runs() {
    local link entry suite pattern binary suites
    for link in "${links[@]}"; do
        read -ra suites <<<"${SUITES:-$(suites_on "$link")}"
        for entry in "${suites[@]}"; do
            suite=${entry%%:*} pattern=.
            [[ $entry != *:* ]] || pattern=${entry#*:}
            binary=$(binary_of "$suite")
            printf '%s\t%s\t%s\t%s\t%s\n' "$suite" "$link" "$binary" "$pattern" \
                "UNDERPASS_PATIENCE=$patience ${VARIABLES_OF[$suite]:-}"
        done
    done
}

# What a machine wrote, counted: a row for each suite and kind of link.
table() {
    printf '## Linux %s\n\n| suite | links | passed | lacks | failed | seconds |\n|---|---|---|---|---|---|\n' \
        "$(cat "$cache/$1/release")"
    awk -F '\t' '
        { run = $1 " | " $2; seconds[run] += $5; if (!(run in count)) order[++runs] = run; count[run]++ }
        $4 == "ok" { passed[run]++ }
        $4 == "skipped" { lacks[run]++ }
        END {
            for (n = 1; n <= runs; n++) {
                run = order[n]
                failed = count[run] - passed[run] - lacks[run]
                printf "| %s | %d | %d | %d | %d |\n", run, passed[run], lacks[run], failed, seconds[run]
            }
        }' "$2/results"
    printf '\n'
}

# What tests found the kernel to lack, and which.
lacks() {
    awk -F '\t' '
        $4 == "skipped" && !(($1, $3) in seen) {
            seen[$1, $3] = 1
            if (!($6 in tests)) order[++reasons] = $6
            tests[$6] = tests[$6] "\n  * " $1 " " $3
        }
        END { for (n = 1; n <= reasons; n++) printf "* %s:%s\n", order[n], tests[order[n]] }' "$1/results"
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
    echo "${TEST_SECONDS:-1500}" >"$share/test-seconds"
    install -m 755 scripts/kernels/inside.sh "$share/command"
    ln -s "$target/release/underpass" "$share/underpass"
    say "booting Linux $(cat "$cache/$kernel/release")"
    scripts/kernels/boot.sh "$cache/$kernel" "$share" || say "the machine was ended, or could not be started"
    touch "$share/results"
    { table "$kernel" "$share"; lacks "$share"; doctor "$share"; } >>"$out/results.md"
    failed=$(failures "$share")
    if [[ -n $failed ]]; then
        status=1
        printf 'Failed:\n\n%s\n\n' "$failed" >>"$out/results.md"
    fi
done
cat "$out/results.md"
exit "$status"
