//! The cryptography that all TLS here uses: aws-lc-rs, because ring has no X25519MLKEM768, which is offered first. (It
//! needs a C compiler, and no more: neither CMake nor Go.)

use std::sync::{Arc, LazyLock};

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Istio's data planes speak TLS 1.3 among each other, and istiod does too.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The one provider of the process.
pub(crate) fn shared() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}
