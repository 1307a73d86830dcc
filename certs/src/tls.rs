//! TLS 1.3 between workloads, each side with its certificate and verified by its identity.
//!
//! A configuration is made once for a pod (server) or for a pod and a destination (client), and lives as long as it
//! is used: the certificate is looked up in its [`Slot`] at each handshake, so rotation rebuilds nothing. An empty
//! slot, or one with an expired certificate, fails the handshake.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use underpass_config::Identity;

use crate::certificate::{earliest_end, identity_of};
use crate::provider;
use crate::slot::Slot;
use crate::trust::Trust;
use crate::verify::{Expected, PeerError, PeerVerifier, Usage};

/// HBONE is HTTP/2.
const ALPN: &[u8] = b"h2";

/// A peer whose identity was verified in the handshake of the connection it came with. Only this module makes one.
///
/// It was verified *then*: whether its certificate still stands, [`Trust::still_believes`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: Identity,
    chain: Arc<[CertificateDer<'static>]>,
    usage: Usage,
    not_after: SystemTime,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the first certificate of its chain expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn chain(&self) -> (&[CertificateDer<'static>], Usage) {
        (&self.chain, self.usage)
    }

    fn of(certificates: Option<&[CertificateDer<'_>]>, usage: Usage) -> Result<Self, HandshakeError> {
        let chain = certificates.unwrap_or_default();
        let certificate = chain.first().ok_or(HandshakeError::Anonymous)?;
        let identity = identity_of(certificate).map_err(PeerError::Identity)?;
        let not_after = earliest_end(chain).map_err(PeerError::Identity)?;
        Ok(Self {
            identity,
            chain: chain.iter().cloned().map(CertificateDer::into_owned).collect(),
            usage,
            not_after,
        })
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The peer is not who it should be.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The peer showed no certificate.
    #[error("the peer shows no certificate")]
    Anonymous,
    /// We have none to show.
    #[error("there is no valid certificate for {0}")]
    NoCertificate(Identity),
    /// Anything else, among it what the peer has against us.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(io::Error),
}

impl HandshakeError {
    /// The one word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Peer(peer) => peer.reason(),
            Self::Anonymous => "peer_without_certificate",
            Self::NoCertificate(_) => "no_certificate",
            Self::Tls(_) => "tls",
            Self::Io(_) => "handshake_io",
        }
    }

    fn of(error: io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Io(error);
        };
        match tls {
            rustls::Error::NoCertificatesPresented => Self::Anonymous,
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                match other.0.downcast_ref::<PeerError>() {
                    Some(peer) => Self::Peer(peer.clone()),
                    None => Self::Tls(tls.clone()),
                }
            }
            _ => Self::Tls(tls.clone()),
        }
    }
}

/// The server side of one identity.
#[derive(Clone)]
pub struct ServerTls {
    slot: Arc<Slot>,
    acceptor: TlsAcceptor,
}

impl ServerTls {
    /// For the identity of `slot`; admits whoever `trust` says is of the mesh.
    pub fn new(slot: Arc<Slot>, trust: Arc<Trust>) -> Result<Self, rustls::Error> {
        let verifier = Arc::new(PeerVerifier::new(trust, Expected::Member));
        let mut config = ServerConfig::builder_with_provider(provider::shared())
            .with_protocol_versions(provider::VERSIONS)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(FromSlot(slot.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not be verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            slot,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Shakes hands with a client and says who it is. The caller limits the time.
    pub async fn accept<IO>(&self, io: IO) -> Result<(server::TlsStream<IO>, VerifiedPeer), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if self.slot.valid().is_none() {
            return Err(HandshakeError::NoCertificate(self.slot.identity().clone()));
        }
        let stream = self.acceptor.accept(io).await.map_err(HandshakeError::of)?;
        let peer = VerifiedPeer::of(stream.get_ref().1.peer_certificates(), Usage::Client)?;
        Ok((stream, peer))
    }
}

/// The client side of one identity, for one destination.
#[derive(Clone)]
pub struct ClientTls {
    slot: Arc<Slot>,
    connector: TlsConnector,
}

impl ClientTls {
    /// For the identity of `slot`; the server must be one of `expected`, modulo trust-domain aliases.
    pub fn new(slot: Arc<Slot>, trust: Arc<Trust>, expected: Arc<[Identity]>) -> Result<Self, rustls::Error> {
        let verifier = Arc::new(PeerVerifier::new(trust, Expected::OneOf(expected)));
        let mut config = ClientConfig::builder_with_provider(provider::shared())
            .with_protocol_versions(provider::VERSIONS)?
            .dangerous() // Not the verifier of web servers, but one that checks more.
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(FromSlot(slot.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Self {
            slot,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Shakes hands with the server at `address`. The caller limits the time.
    pub async fn connect<IO>(
        &self,
        io: IO,
        address: IpAddr,
    ) -> Result<(client::TlsStream<IO>, VerifiedPeer), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if self.slot.valid().is_none() {
            return Err(HandshakeError::NoCertificate(self.slot.identity().clone()));
        }
        let name = ServerName::IpAddress(address.into());
        let stream = self.connector.connect(name, io).await.map_err(HandshakeError::of)?;
        let peer = VerifiedPeer::of(stream.get_ref().1.peer_certificates(), Usage::Server)?;
        Ok((stream, peer))
    }
}

/// Shows what is in the slot at the moment of the handshake.
#[derive(Debug)]
struct FromSlot(Arc<Slot>);

impl FromSlot {
    fn show(&self) -> Option<Arc<CertifiedKey>> {
        Some(self.0.valid()?.certified().clone())
    }
}

impl ResolvesServerCert for FromSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.show()
    }
}

impl ResolvesClientCert for FromSlot {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.show()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
