//! A token, or a set of keys, as peers may write them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::jwt(data);
});
