//! What PEM files hold.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The certificates of a file, in its order.
///
/// # Errors
/// Why they can't be read, or that there are none; the caller knows the file.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| error.to_string())?;
    match certificates.is_empty() {
        true => Err("no certificate in it".into()),
        false => Ok(certificates),
    }
}

/// The certificates of a file as roots.
///
/// # Errors
/// Why they can't be used, or that there are none.
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in certificates(pem)? {
        store.add(root).map_err(|error| error.to_string())?;
    }
    Ok(store)
}
