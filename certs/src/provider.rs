//! The cryptography that all TLS here uses: aws-lc-rs, because ring has no X25519MLKEM768, which is offered first. (It
//! needs a C compiler, and no more: neither CMake nor Go.)

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, SupportedProtocolVersion};

/// Istio's data planes speak TLS 1.3 among each other, and istiod does too.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// AES-128-GCM first: it is as strong as the P-256 of Istio's certificates, and every byte between nodes goes through it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
});

/// The one provider of the process.
pub(crate) fn shared() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}
