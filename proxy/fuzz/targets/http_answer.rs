//! The head of an endpoint's answer: what it says of another try, and what of it goes on.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::http_answer(data);
});
