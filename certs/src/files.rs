//! Certificates, roots and revocations from files, for use without Istio and beside it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use underpass_config::Identity;
use zeroize::{Zeroize, Zeroizing};

use crate::certificate::WorkloadCertificate;
use crate::pem;
use crate::source::{CertificateSource, Pending, SourceError};
use crate::trust::Trust;

/// How often files are looked at. They are small, and Kubernetes replaces them in ways that a watch may miss.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// One identity's certificate in files. Replacing them replaces the certificate.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate and its intermediates, as PEM.
    pub chain: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

impl CertificateSource for CertificateFiles {
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        Box::pin(async move {
            let chain = certificates(&self.chain).await?;
            let pem = Zeroizing::new(read(&self.key).await?);
            let mut encoded =
                PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(&self.key, error.to_string()))?;
            let key = sign::any_supported_type(&encoded).map_err(|error| unusable(&self.key, error.to_string()));
            encoded.zeroize();
            Ok(WorkloadCertificate::new(identity, chain, key?, Vec::new())?)
        })
    }

    fn ask_again_after(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }
}

/// The certificates of several identities in files, and of no others.
#[derive(Clone, Debug, Default)]
pub struct CertificateFilesByIdentity(pub HashMap<Identity, CertificateFiles>);

impl CertificateSource for CertificateFilesByIdentity {
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        match self.0.get(identity) {
            Some(files) => files.obtain(identity),
            None => Box::pin(async { Err(SourceError::NoFiles) }),
        }
    }

    fn ask_again_after(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }
}

/// Roots and revoked certificates in files. Replacing them replaces what is trusted.
#[derive(Clone, Debug, Default)]
pub struct TrustFiles {
    /// The roots, as PEM.
    pub roots: Option<PathBuf>,
    /// Certificate revocation lists, as PEM.
    pub revocations: Option<PathBuf>,
}

impl TrustFiles {
    /// Puts what the files say in force. On an error, what was in force stays.
    pub async fn load(&self, trust: &Trust) -> Result<(), SourceError> {
        let roots = match &self.roots {
            None => Vec::new(),
            Some(path) => certificates(path).await?,
        };
        let mut revocations: Vec<CertificateRevocationListDer<'static>> = Vec::new();
        if let Some(path) = &self.revocations {
            let pem = read(path).await?;
            for one in CertificateRevocationListDer::pem_slice_iter(&pem) {
                revocations.push(one.map_err(|error| unusable(path, error.to_string()))?);
            }
        }
        trust.configure(roots, &revocations).map_err(|error| SourceError::File {
            file: format!("{:?}, {:?}", self.roots, self.revocations),
            why: error.to_string(),
        })
    }

    /// Loads the files again and again, for ever.
    pub async fn follow(self, trust: Arc<Trust>) {
        let mut complained = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.load(&trust).await {
                Ok(()) => complained = false,
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(%error, "roots and revocations stay as they are");
                }
                Err(_) => {}
            }
        }
    }
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    pem::certificates(&read(path).await?).map_err(|why| unusable(path, why))
}

async fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    tokio::fs::read(path)
        .await
        .map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, why: String) -> SourceError {
    SourceError::File {
        file: path.display().to_string(),
        why,
    }
}
