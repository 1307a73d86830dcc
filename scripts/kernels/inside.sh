#!/usr/bin/env bash
# Runs the suites of /mnt/suites in an emulated machine, each test by itself, so that one that hangs (for the seconds in /mnt/test-seconds) or dies is one
# failure. A line of /mnt/suites: suite, links ("clean", or what netem is to do to every packet), binary, a pattern of
# names of its tests, variables.
#
# Writes /mnt/results (suite, links, test, result, seconds, why; the result is ok, skipped, FAILED or HUNG),
# /mnt/failures (what a failed test printed), /mnt/doctor (what /mnt/underpass finds), /mnt/kernel-log (errors), and
# at the end /mnt/done.
set -uo pipefail

test_seconds=$(cat /mnt/test-seconds)
mkdir -p /mnt/failures
: >/mnt/results
# Without udev nobody makes the device that would load it.
modprobe tun
[[ ! -e /mnt/underpass ]] || timeout 120 /mnt/underpass doctor >/mnt/doctor 2>&1

# An ip(8) that puts netem on both ends of every veth that is brought up with it: the tests build their links as ever.
lossy=/run/lossy
mkdir -p "$lossy"
cat >"$lossy/ip" <<IP
#!/bin/sh
$(command -v ip) "\$@" || exit
case "\$*" in
"link set lo up") ;;
"link set "*" up") exec $(command -v tc) qdisc add dev "\$3" root netem \$UNDERPASS_NETEM ;;
esac
IP
chmod +x "$lossy/ip"

run_test() {
    local suite=$1 links=$2 binary=$3 environment=$4 name=$5 output start status result why path=$PATH
    output=$(mktemp)
    start=$SECONDS
    [[ $links == clean ]] || path=$lossy:$path
    # shellcheck disable=SC2086 # variables, several to a word
    env $environment PATH="$path" UNDERPASS_NETEM="$links" timeout --kill-after=5 "$test_seconds" \
        "$binary" --exact "$name" --nocapture --test-threads=1 >"$output" 2>&1
    status=$?
    # The test runner may have begun the line.
    why=$(sed -n 's/^.*SKIP\( [^ ]*\)\{0,1\}: //p' "$output" | head -1)
    # An ignored test is no test of this suite.
    grep -q '^test result: ok. 0 passed; 0 failed; 1 ignored' "$output" && { rm -f "$output"; return; }
    case $status in
    0) if [[ -n $why ]]; then result=skipped; else result=ok; fi ;;
    124 | 137) result=HUNG why="not done in $test_seconds s" ;;
    *)
        result=FAILED
        why=$(grep -A1 "panicked at" "$output" | head -2 | tr '\n\t' '  ' | cut -c1-300)
        ;;
    esac
    if [[ $result == FAILED || $result == HUNG ]]; then
        cp "$output" "/mnt/failures/$suite.${name//:/_}.${links// /_}"
    fi
    rm -f "$output"
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$suite" "$links" "$name" "$result" $((SECONDS - start)) "$why" >>/mnt/results
    printf '%s (%s): %s: %s (%s s) %s\n' "$suite" "$links" "$name" "$result" $((SECONDS - start)) "$why" >/dev/console
}
export -f run_test
export lossy test_seconds

while IFS=$'\t' read -r suite links binary pattern environment; do
    readarray -t tests < <("$binary" --list --format terse | sed -n 's/: test$//p' | grep -E -- "$pattern")
    if [[ ${#tests[@]} -eq 0 ]]; then
        printf '%s\t%s\t%s\tFAILED\t0\tno such test\n' "$suite" "$links" "$pattern" >>/mnt/results
        continue
    fi
    printf '%s\0' "${tests[@]}" |
        xargs -0 -r -P "${MACHINE_JOBS:-2}" -I{} bash -c 'run_test "$@"' _ "$suite" "$links" "$binary" "$environment" {}
done </mnt/suites
dmesg --level=emerg,alert,crit,err >/mnt/kernel-log
touch /mnt/done
