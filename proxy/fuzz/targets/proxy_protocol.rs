//! The PROXY protocol header says what is so, and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::proxy_protocol(data);
});
