//! A client of HTTP/1.1, through the codec and on to an endpoint: each request is one message there.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::http1(data);
});
