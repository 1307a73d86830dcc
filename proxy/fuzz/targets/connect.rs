//! The head of a CONNECT: authority and fields. Only the authority decides, and only for the pod.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::connect(data);
});
