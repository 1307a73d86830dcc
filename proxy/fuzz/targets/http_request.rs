//! The head of a request: it is routed, rewritten and goes on as one thing, without what belongs to its hop.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::http_request(data);
});
