//! A certificate with its key, checked when it is made: for one identity, with the key it is for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SigningKey};
use thiserror::Error;
use underpass_config::{Identity, IdentityError};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a workload shows to its peers.
pub struct WorkloadCertificate {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    roots: Vec<CertificateDer<'static>>,
}

/// Why something is not a certificate that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// There is none.
    #[error("the certificate chain is empty")]
    Empty,
    /// It can't be read.
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
    /// It names nobody, or several.
    #[error("the certificate has {0} URI names; an identity is exactly one")]
    UriNames(usize),
    /// It names somebody, but not as Istio does.
    #[error("the certificate is for `{id}`: {source}")]
    Identity {
        /// The name.
        id: String,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// It is somebody else's.
    #[error("the certificate is for {found}, not for {asked}")]
    SomebodyElse {
        /// Whose it is.
        found: Identity,
        /// Whose it should be.
        asked: Identity,
    },
    /// The key belongs to another certificate.
    #[error("the certificate is not for this key: {0}")]
    Key(String),
}

impl WorkloadCertificate {
    /// The certificate of `identity`: a chain that begins with its own and is for `key`, and the roots that came with
    /// it.
    pub fn new(
        identity: &Identity,
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertificateError> {
        let leaf = parse(chain.first().ok_or(CertificateError::Empty)?)?;
        let found = identity_in(&leaf)?;
        if found != *identity {
            return Err(CertificateError::SomebodyElse {
                found,
                asked: identity.clone(),
            });
        }
        let (not_before, not_after) = (time(leaf.validity.not_before), time(leaf.validity.not_after));
        let serial = leaf.raw_serial_as_string();
        let certified = CertifiedKey::new(chain, key);
        certified
            .keys_match()
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        Ok(Self {
            identity: found,
            certified: Arc::new(certified),
            not_before,
            not_after,
            serial,
            roots,
        })
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// From when on it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number, in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The roots that its issuer sent with it.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// Says whose it is and how long it is valid; never the key.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(CertificateError::Unreadable(format!("{} bytes follow it", rest.len()))),
        Err(error) => Err(CertificateError::Unreadable(error.to_string())),
    }
}

fn time(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// When the first of these expires.
pub(crate) fn earliest_end(chain: &[CertificateDer<'_>]) -> Result<SystemTime, CertificateError> {
    let ends = chain
        .iter()
        .map(|certificate| Ok(time(parse(certificate)?.validity.not_after)));
    let ends: Vec<SystemTime> = ends.collect::<Result<_, CertificateError>>()?;
    ends.into_iter().min().ok_or(CertificateError::Empty)
}

/// The SPIFFE identity that a certificate is for: its only URI name (X.509-SVID specification, section 2).
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    identity_in(&parse(certificate)?)
}

fn identity_in(certificate: &X509Certificate<'_>) -> Result<Identity, CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let ids: Vec<&str> = names
        .filter_map(|name| match name {
            GeneralName::URI(id) => Some(*id),
            _ => None,
        })
        .collect();
    let [id] = ids[..] else {
        return Err(CertificateError::UriNames(ids.len()));
    };
    id.parse().map_err(|source| CertificateError::Identity {
        id: id.to_owned(),
        source,
    })
}
