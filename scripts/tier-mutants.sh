#!/usr/bin/env bash
# tier-mutants.sh [MUTANT...]: leaves out one rule of the kernel tier after the other, and sees that the tests notice. A mutant is the eBPF
# object built without that rule (`--cfg mutant="NAME"`); the tests load it because they are built with the feature `mutants`. No
# product is. Needs root and what `make ebpf` needs.
set -euo pipefail
cd "$(dirname "$0")/.."

# Each rule, and the tests that are there for it.
declare -A tests=(
    [behind]=tier::order          # nothing of the sender's is on its way
    [quiet]=tier::joining         # the receiver has read everything when it is joined
    [hop]=tier::order             # what the proxy sends is redirected
    [room]=tier::room             # the receiver has room
    [messages]=tier::room         # many small messages are no small queue
    [armed]=tier::order           # the direction is armed
    [ends]=tier::ends             # the end of a hop closes its direction
    [fin]=tier::ends              # an end that waits to be read is no unread byte
    [late]=tier::ends             # nothing that was let through before comes after the end
    [between]=tier::death         # a reset waits for who is between the gate and the receiver's queue
    [wary]=tier::death            # but not each time for as long
    [generation]=tier::order      # the place is still the flow's
    [blocking]=tier::joining      # O_NONBLOCK
    [locked]=tier::locked          # nobody waits asleep for the lock of a receiver
    [order]=tier::object_code     # the counter is loaded first
)

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
# A directory of its own, so that no product is ever built from what lies in the usual one.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/mutants
export UNDERPASS_EBPF_OBJECT=$directory/underpass.bpf.o CI=1

# A test that waits for what a mutant never does is ended: that is noticing, too.
run() {
    timeout --kill-after=5 180 "${CARGO:-cargo}" test --quiet --locked -p underpass-ebpf --features mutants --test kernel "$1" >"$directory/log" 2>&1
}

scripts/ebpf-build.sh "$UNDERPASS_EBPF_OBJECT"
if ! run tier::; then
    cat "$directory/log"
    echo "tier-mutants: the tests fail without any mutant"
    exit 1
fi

survivors=0
for mutant in "${@:-${!tests[@]}}"; do
    scripts/ebpf-build.sh "$UNDERPASS_EBPF_OBJECT" "$mutant"
    status=0
    run "${tests[$mutant]}" || status=$?
    if [[ $status -eq 0 ]]; then
        echo "tier-mutants: $mutant SURVIVES ${tests[$mutant]}"
        survivors=$((survivors + 1))
    elif [[ $status -eq 124 || $status -eq 137 ]]; then
        echo "tier-mutants: $mutant is noticed: with it ${tests[$mutant]} did not come to its end"
    elif ! grep -q '^test result: FAILED' "$directory/log"; then
        cat "$directory/log"
        echo "tier-mutants: $mutant: the tests did not run"
        exit 1
    else
        echo "tier-mutants: $mutant is noticed by $(sed -n 's/^    \(tier::.*\)/\1/p' "$directory/log" | sort -u | tr '\n' ' ')"
    fi
done
exit "$((survivors > 0))"
