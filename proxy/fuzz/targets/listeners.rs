//! The first bytes to a listener: SOCKS5 or HTTP CONNECT.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::listeners(data);
});
