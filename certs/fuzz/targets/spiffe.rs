//! A text that is an identity is the only spelling of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass_config::Identity;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A prefix makes up for what libFuzzer would take long to find.
    for id in [
        text.to_owned(),
        format!("spiffe://{text}"),
        format!("spiffe://td/ns/{text}"),
    ] {
        if let Ok(identity) = id.parse::<Identity>() {
            assert_eq!(identity.to_string(), id);
        }
    }
});
