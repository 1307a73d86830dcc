//! What an authorization server may answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::ext_authz(data);
});
