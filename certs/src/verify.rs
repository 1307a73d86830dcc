//! Verification of a peer: a chain to a root that we trust, not revoked, of this moment, and the identity in it.
//!
//! Everything is decided during the handshake, on both sides by the same code. Sessions are never resumed (see
//! `tls`): a resumed one would not be verified again, and so would outlive a revocation. A connection that lasts is verified again
//! by [`Trust::still_believes`], when what is trusted has changed.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};
use thiserror::Error;
use underpass_config::Identity;
use webpki::{EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder, UnknownStatusPolicy};

use crate::certificate::{self, identity_of};
use crate::provider;
use crate::trust::{Bundle, Trust};

/// Why a peer is not who it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// Nobody we trust vouches for it, or no longer.
    #[error("the peer's certificate is not valid: {0}")]
    Chain(webpki::Error),
    /// It does not say who it is.
    #[error("the peer's certificate does not say who it is: {0}")]
    Identity(certificate::CertificateError),
    /// It is of another mesh.
    #[error("the peer is {0}, whose trust domain is not one of ours")]
    TrustDomain(Identity),
    /// It is somebody else.
    #[error("the peer is {found}, not {expected}", expected = in_words(expected))]
    SomebodyElse {
        /// Who it is.
        found: Identity,
        /// Who it should be.
        expected: Vec<Identity>,
    },
}

fn in_words(identities: &[Identity]) -> String {
    match identities {
        [] => "anybody (no identity is expected)".into(),
        _ => identities
            .iter()
            .map(Identity::to_string)
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

impl PeerError {
    /// Whether its issuer has taken it back.
    pub fn is_revocation(&self) -> bool {
        matches!(self, Self::Chain(webpki::Error::CertRevoked))
    }

    /// The one word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Chain(webpki::Error::CertExpired { .. }) => "peer_expired",
            Self::Chain(webpki::Error::CertNotValidYet { .. }) => "peer_not_yet_valid",
            Self::Chain(webpki::Error::CertRevoked) => "peer_revoked",
            Self::Chain(_) => "peer_untrusted",
            Self::Identity(_) => "peer_without_identity",
            Self::TrustDomain(_) => "peer_trust_domain",
            Self::SomebodyElse { .. } => "peer_identity",
        }
    }
}

/// Who the peer may be.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Anybody of our trust domains.
    Member,
    /// One of these; none of them is nobody.
    OneOf(Arc<[Identity]>),
}

/// What a peer's certificate is for: the peer's side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

/// Verifies a chain by what is trusted at this moment, and says whose it is.
pub(crate) fn verify_chain(
    bundle: &Bundle,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: Usage,
) -> Result<Identity, PeerError> {
    let revocations: Vec<_> = bundle.revocations.iter().collect();
    // A list that is out of date still revokes; an issuer without a list has revoked nothing.
    let revocation = RevocationOptionsBuilder::new(&revocations).ok().map(|options| {
        options
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build()
    });
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let certificate = EndEntityCert::try_from(end_entity).map_err(PeerError::Chain)?;
    certificate
        .verify_for_usage(
            provider::shared().signature_verification_algorithms.all,
            &bundle.anchors,
            intermediates,
            now,
            usage,
            revocation,
            None,
        )
        .map_err(PeerError::Chain)?;
    identity_of(end_entity).map_err(PeerError::Identity)
}

#[derive(Debug)]
pub(crate) struct PeerVerifier {
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
    expected: Expected,
}

impl PeerVerifier {
    pub(crate) fn new(trust: Arc<Trust>, expected: Expected) -> Self {
        Self {
            trust,
            provider: provider::shared(),
            expected,
        }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), PeerError> {
        let bundle = self.trust.bundle();
        let found = verify_chain(&bundle, end_entity, intermediates, now, usage)?;
        let domains = self.trust.domains();
        match &self.expected {
            Expected::Member if domains.contains(&found.trust_domain) => Ok(()),
            Expected::Member => Err(PeerError::TrustDomain(found)),
            Expected::OneOf(expected) if expected.iter().any(|one| domains.same(one, &found)) => Ok(()),
            Expected::OneOf(expected) => Err(PeerError::SomebodyElse {
                found,
                expected: expected.to_vec(),
            }),
        }
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// The peer is told that its certificate is not accepted; why is for our own log.
fn refused(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn only_tls13() -> rustls::Error {
    PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Usage::Server)
            .map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// None: a peer has one certificate, and roots change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Usage::Client)
            .map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
