//! What a client of HBONE sends behind the preface of HTTP/2: any request leads to the pod that it came to, or nowhere.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    underpass::fuzzing::hbone(data);
});
