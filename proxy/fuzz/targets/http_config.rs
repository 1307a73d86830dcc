//! A configuration of HTTP: it is refused with a reason, or takes any request.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::http_config(data);
});
