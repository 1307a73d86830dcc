//! What a peer shows and what a CA answers is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use underpass_certs::{chain_and_roots, identity_of};

fuzz_target!(|data: &[u8]| {
    let _ = identity_of(&CertificateDer::from(data));
    let text = String::from_utf8_lossy(data);
    let answer: Vec<String> = text.split('\0').map(str::to_owned).collect();
    let _ = chain_and_roots(&answer);
});
