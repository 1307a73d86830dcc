//! Where certificates come from.

use std::pin::Pin;
use std::time::Duration;

use thiserror::Error;
use underpass_config::Identity;

use crate::certificate::{CertificateError, WorkloadCertificate};
use crate::istiod::IstiodError;

/// A future on its way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Gives out certificates: a CA, or files.
pub trait CertificateSource: Send + Sync + 'static {
    /// A certificate for `identity`, with a key of its own.
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>>;

    /// How often to ask again although the certificate is still good for long: for sources that change by themselves.
    fn ask_again_after(&self) -> Option<Duration> {
        None
    }
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum SourceError {
    /// istiod can't be reached.
    #[error(transparent)]
    Istiod(#[from] IstiodError),
    /// The CA doesn't say why, only that it does not know us, or does not let us be who we ask to be.
    #[error(
        "the CA does not accept us ({message}): check the token file, the cluster id, and that this node runs a pod of \
         that account"
    )]
    Unauthenticated {
        /// What it says.
        message: String,
    },
    /// The request itself is wrong; the same one will be refused again.
    #[error("the CA refuses the request: {message}")]
    Invalid {
        /// What it says.
        message: String,
    },
    /// Anything else may be over in a moment.
    #[error("the CA did not answer: {message}")]
    Unavailable {
        /// What is known of it.
        message: String,
    },
    /// What came can't be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A file can't be used.
    #[error("{file}: {why}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are files, but none for this identity.
    #[error("no certificate file is configured for it")]
    NoFiles,
    /// No key could be made.
    #[error("no key or request could be made: {0}")]
    Key(String),
    /// It has expired already, by our clock.
    #[error("the certificate that came has expired by our clock: compare the clocks of this node and of its issuer")]
    Expired,
}

impl SourceError {
    /// Whether trying again soon makes no sense.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::NoFiles)
    }
}
