#!/usr/bin/env bash
# ebpf-build.sh OUTPUT [MUTANT]: compiles the eBPF programs, or a mutant of them (scripts/tier-mutants.sh). The same sources and
# toolchain give the same bytes wherever they lie: paths are replaced by fixed ones, and what is not needed to load the programs (DWARF)
# is removed; BTF, with line numbers for the verifier's messages, stays.
set -euo pipefail
output=$(realpath "$1")
cd "$(dirname "$0")/.."
root=$PWD

llvm=22
cargo_home=${CARGO_HOME:-$HOME/.cargo}
target=${CARGO_TARGET_DIR:-$root/target}/ebpf
export PATH="$PATH:$cargo_home/bin"

flags=(
    -C debuginfo=2
    -C link-arg=--btf
    -C panic=abort
    --remap-path-prefix "$root=/underpass"
    --remap-path-prefix "$cargo_home=/cargo"
    --remap-path-prefix "/usr/lib/rustlib/src/rust=/rust"
)
if [ $# -gt 1 ]; then
    flags+=(--cfg "mutant=\"$2\"")
fi
separator=$'\x1f'
printf -v encoded "%s$separator" "${flags[@]}"

# Debian's compiler, which has a library for the target, may use the unstable features that eBPF needs when told so.
(
    cd offload-ebpf/programs
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_ENCODED_RUSTFLAGS="${encoded%"$separator"}" CARGO_TARGET_DIR="$target" \
        "${CARGO:-cargo}" build --quiet --locked --release --target bpfel-unknown-none
)
object=$target/bpfel-unknown-none/release/underpass
# In the names of functions that are called by address (`bpf_loop`) rustc writes a hash of where the crate lies ("Cs…_").
names=$(mktemp)
trap 'rm -f "$names"' EXIT
tools=/usr/lib/llvm-$llvm/bin
"$tools/llvm-nm" --format=just-symbols "$object" | sed -nE 's/^(_R.*)(Cs[0-9A-Za-z]*_)(.*)$/\1\2\3 \1C\3/p' >"$names"
"$tools/llvm-objcopy" --strip-debug --redefine-syms="$names" "$object" "$output"
