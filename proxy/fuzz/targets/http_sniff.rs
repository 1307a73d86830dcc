//! The first bytes of a connection of HTTP: they are one protocol, whatever follows.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::http_sniff(data);
});
