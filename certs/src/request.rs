//! A new key and the request to have it certified.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::crypto::aws_lc_rs::sign;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use underpass_config::Identity;
use zeroize::Zeroizing;

use crate::source::SourceError;

/// An ECDSA P-256 key, and the certificate request for `identity` that is signed with it, as PEM. Of the key, only what
/// signs is kept; its encoding is wiped.
pub(crate) fn request(identity: &Identity) -> Result<(Arc<dyn SigningKey>, String), SourceError> {
    let failed = |error: rcgen::Error| SourceError::Key(error.to_string());
    let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?);
    let name = identity.to_string().try_into().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(name)];
    let csr = params
        .serialize_request(&*key)
        .and_then(|request| request.pem())
        .map_err(failed)?;
    let encoded = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let signing = sign::any_ecdsa_type(&encoded).map_err(|error| SourceError::Key(error.to_string()))?;
    Ok((signing, csr))
}
