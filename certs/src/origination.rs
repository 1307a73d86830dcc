//! TLS with servers that need not be of the mesh, as their client: what a cluster says of it (`underpass_config::http::UpstreamTls`) is
//! what is verified.
//!
//! Files are read when a configuration is applied, so that one that can't be used rejects it, and looked at again before a handshake: one that was
//! replaced counts from then on. Until what replaces it can be used whole (a chain and its key are two files), what was there before stays.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use underpass_config::http::{KeyPairFiles, NameKind, NameMatch, Roots, ServerNames, UpstreamTls};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::{pem, provider};

/// Files are looked at again no sooner than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a server can't be spoken to.
#[derive(Debug, Error)]
pub enum OriginationError {
    /// A file can't be used.
    #[error("{}: {why}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The system believes nobody.
    #[error("the system has no roots to verify servers by: install ca-certificates, or name a file as `tls.roots`")]
    NoSystemRoots,
    /// The configuration can't be used, for example because a key is not that of its certificate.
    #[error("TLS: {0}")]
    Configuration(rustls::Error),
    /// There is no name that the server could be verified by.
    #[error("`{0}` is not a name that a server can be verified by: set `tls.server_name` or `tls.names`")]
    Nameless(String),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(String),
}

/// How servers of a cluster are spoken to.
pub struct Origination {
    settings: UpstreamTls,
    made: ArcSwap<Made>,
    born: Instant,
    /// When files were looked at last, in nanoseconds since then.
    looked: AtomicU64,
}

struct Made {
    connector: TlsConnector,
    stamps: Vec<Stamp>,
    /// How often files were replaced before.
    edition: u64,
}

/// Enough of a file's metadata to tell that it is another, or another content.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl fmt::Debug for Origination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origination")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Origination {
    /// Reads the files that `settings` name. It blocks.
    ///
    /// # Errors
    /// When one of them can't be used.
    pub fn open(settings: &UpstreamTls) -> Result<Self, OriginationError> {
        Ok(Self {
            made: ArcSwap::from_pointee(make(settings, 0)?),
            settings: settings.clone(),
            born: Instant::now(),
            looked: AtomicU64::new(0),
        })
    }

    /// Shakes hands with a server that was asked for as `name` (a host name or an IP address), and offers it `alpn`. `address` stands in where nothing is
    /// verified by the name and that is none. The caller limits the time.
    ///
    /// # Errors
    /// When the server is not who it has to be, or does not want us.
    pub async fn connect<IO>(
        self: &Arc<Self>,
        io: IO,
        name: &str,
        address: std::net::IpAddr,
        alpn: Vec<Vec<u8>>,
    ) -> Result<TlsStream<IO>, OriginationError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.look_again().await;
        let name = match ServerName::try_from(name.to_owned()) {
            Ok(name) => name,
            Err(_) if self.settings.names == ServerNames::Asked => {
                return Err(OriginationError::Nameless(name.to_owned()));
            }
            Err(_) => ServerName::IpAddress(address.into()),
        };
        let connector = self.made.load().connector.clone();
        let connecting = connector.with_alpn(alpn).connect(name, io);
        connecting
            .await
            .map_err(|error| OriginationError::Handshake(in_words(&error)))
    }

    /// Which edition of its files counts, after a look at them. A connection that was made by an earlier one may lead to somebody who is believed no more.
    pub async fn edition(self: &Arc<Self>) -> u64 {
        self.look_again().await;
        self.edition_in_force()
    }

    /// As [`Origination::edition`], as of the last look.
    pub fn edition_in_force(&self) -> u64 {
        self.made.load().edition
    }

    /// Reads the files again if they have changed.
    async fn look_again(self: &Arc<Self>) {
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let looked = self.looked.load(Ordering::Relaxed);
        let is_due = Duration::from_nanos(now.saturating_sub(looked)) >= LOOK_EVERY;
        let is_ours = || {
            self.looked
                .compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed)
        };
        if !is_due || is_ours().is_err() {
            return;
        }
        let this = self.clone();
        // If it panics, what there is stays.
        let _ = tokio::task::spawn_blocking(move || this.read_again()).await;
    }

    fn read_again(&self) {
        let before = self.made.load();
        if stamps(&self.settings) == before.stamps {
            return;
        }
        match make(&self.settings, before.edition + 1) {
            Ok(made) => self.made.store(Arc::new(made)),
            Err(error) => {
                tracing::warn!(%error, "files of a cluster's TLS have changed and can't be used: what was there before stays")
            }
        }
    }
}

fn make(settings: &UpstreamTls, edition: u64) -> Result<Made, OriginationError> {
    // Before they are read: what changes meanwhile is read again.
    let stamps = stamps(settings);
    let provider = provider::shared();
    let verifier = OriginVerifier {
        roots: roots(&settings.roots)?,
        names: settings.names.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OriginationError::Configuration)?
        .dangerous() // Webpki's checks, less those that the configuration says are not wanted.
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &settings.certificate {
        None => config.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = key_pair(files)?;
            let config = config.with_client_auth_cert(chain, key);
            config
                .map_err(|error| unusable(&files.key, format!("not the key of {}: {error}", files.chain.display())))?
        }
    };
    Ok(Made {
        connector: TlsConnector::from(Arc::new(config)),
        stamps,
        edition,
    })
}

/// Nothing: anybody is believed.
fn roots(roots: &Roots) -> Result<Option<Arc<RootCertStore>>, OriginationError> {
    match roots {
        Roots::Anybody => Ok(None),
        Roots::System => system_roots().map(Some),
        Roots::File(file) => {
            let store = pem::roots(&read(file)?).map_err(|why| unusable(file, why))?;
            Ok(Some(Arc::new(store)))
        }
    }
}

/// Read once: a system changes its roots by packages, after which its services are restarted.
fn system_roots() -> Result<Arc<RootCertStore>, OriginationError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's roots can't be read");
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(found.certs);
        Arc::new(store)
    });
    match roots.is_empty() {
        true => Err(OriginationError::NoSystemRoots),
        false => Ok(roots.clone()),
    }
}

fn key_pair(files: &KeyPairFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), OriginationError> {
    let chain = pem::certificates(&read(&files.chain)?).map_err(|why| unusable(&files.chain, why))?;
    let pem = Zeroizing::new(read(&files.key)?);
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(&files.key, error.to_string()))?;
    Ok((chain, key))
}

fn read(file: &Path) -> Result<Vec<u8>, OriginationError> {
    fs::read(file).map_err(|error| unusable(file, error.to_string()))
}

fn unusable(file: &Path, why: String) -> OriginationError {
    OriginationError::File { file: file.into(), why }
}

fn stamps(settings: &UpstreamTls) -> Vec<Stamp> {
    let roots = match &settings.roots {
        Roots::File(file) => Some(file),
        Roots::System | Roots::Anybody => None,
    };
    let pair = settings.certificate.iter().flat_map(|pair| [&pair.chain, &pair.key]);
    roots.into_iter().chain(pair).map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    let seen = fs::metadata(file).ok()?;
    let (modified, changed) = ((seen.mtime(), seen.mtime_nsec()), (seen.ctime(), seen.ctime_nsec()));
    Some((
        seen.dev(),
        seen.ino(),
        seen.len(),
        modified.0,
        modified.1,
        changed.0,
        changed.1,
    ))
}

/// What went wrong in a handshake, for logs and for whoever asked.
fn in_words(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            format!("invalid peer certificate: {}", other.0)
        }
        Some(tls) => tls.to_string(),
        None => error.to_string(),
    }
}

/// Verifies a server as a cluster says.
#[derive(Debug)]
struct OriginVerifier {
    /// None: anybody is believed.
    roots: Option<Arc<RootCertStore>>,
    names: ServerNames,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A believed certificate is somebody else's.
#[derive(Debug, Error)]
#[error("it is for {0}, which is not whom the cluster's `tls.names` name")]
struct NotNamed(String);

impl ServerCertVerifier for OriginVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        match &self.names {
            ServerNames::Asked => verify_server_name(&parsed, server_name)?,
            ServerNames::Matching(wanted) => verify_names(end_entity, wanted)?,
            ServerNames::Any => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_names(certificate: &CertificateDer<'_>, wanted: &[NameMatch]) -> Result<(), rustls::Error> {
    let names = names(certificate).ok_or(CertificateError::BadEncoding)?;
    let is_wanted = |(kind, name): &(NameKind, String)| wanted.iter().any(|wanted| wanted.matches(*kind, name));
    if names.iter().any(is_wanted) {
        return Ok(());
    }
    let told: Vec<&str> = names.iter().map(|(_, name)| name.as_str()).collect();
    let told = match told.is_empty() {
        true => "nobody".to_owned(),
        false => told.join(", "),
    };
    Err(CertificateError::Other(OtherError(Arc::new(NotNamed(told)))).into())
}

/// The alternative names of a certificate that can be written as texts; nothing if it can't be read.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<(NameKind, String)>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let Some(extension) = parsed.subject_alternative_name().ok()? else {
        return Some(Vec::new());
    };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((NameKind::Dns, (*name).to_owned())),
        GeneralName::URI(name) => Some((NameKind::Uri, (*name).to_owned())),
        GeneralName::RFC822Name(name) => Some((NameKind::Email, (*name).to_owned())),
        GeneralName::IPAddress(bytes) => Some((NameKind::Ip, ip(bytes)?.to_string())),
        _ => None,
    });
    Some(names.collect())
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Into::into),
        _ => None,
    }
}
