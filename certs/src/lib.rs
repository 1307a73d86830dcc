//! Who we are, who the others are, and the certificates that show it.
//!
//! In the order in which a connection meets them:
//!
//! * [`IdentityStore`]: the certificates of the pods of this node. Whoever serves a pod [holds](IdentityStore::hold)
//!   its identity; the store fetches the certificate, renews it in time, and drops it when nobody holds it.
//! * [`ServerTls`] and [`ClientTls`]: TLS 1.3 for a pod, and for a pod and a destination. Both hand out a
//!   [`VerifiedPeer`], which nothing else can make.
//! * [`Trust`]: the roots that are believed, what they have revoked, the trust domains that are ours.
//! * [`CertificateSource`]: [`IstioCa`], or [`CertificateFiles`] without Istio. [`TrustFiles`] has roots and
//!   revocations.
//! * [`Origination`]: TLS to servers that need not be of the mesh, verified as a cluster says.
//! * [`Istiod`]: how istiod is reached, for its CA and for xDS.
//!
//! The one idea: a connection asks for the state of this moment and never for more. Certificates, roots and revocations
//! are behind atomic pointers that handshakes read; rotation replaces what they point to and rebuilds nothing.
//!
//! Invariants:
//! * A peer's identity is the one in the certificate that was verified in that connection's handshake. There are no
//!   resumed sessions.
//! * An expired certificate is never shown, and without roots nobody is believed.
//! * A private key is never written, logged or part of a `Debug`; its encoding is wiped where libraries let us.
//!
//! # How it is wired
//!
//! ```no_run
//! # async fn wire() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use underpass_certs::{
//!     ClientTls, IdentityStore, IstioCa, IstioCaSettings, Istiod, IstiodSecurity, ServerTls, StoreSettings, Trust,
//!     TrustDomains,
//! };
//!
//! let security = IstiodSecurity::Tls {
//!     roots: "/var/run/secrets/istio/root-cert.pem".into(),
//!     server_name: None,
//! };
//! let token = Some("/var/run/secrets/tokens/istio-token".into());
//! let istiod = Istiod::new("istiod.istio-system.svc:15012", security, token);
//! let ca = Arc::new(IstioCa::new(istiod, IstioCaSettings::new("Kubernetes")));
//! let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
//! let (store, serving) = IdentityStore::new(ca, trust.clone(), StoreSettings::default());
//! tokio::spawn(serving);
//!
//! // When a pod is enrolled:
//! let pod = store.hold(&"spiffe://cluster.local/ns/shop/sa/web".parse()?);
//! let inbound = ServerTls::new(pod.slot().clone(), trust.clone())?;
//! // For a destination of this pod, whose endpoint WDS says is `shop/db`:
//! let expected = Arc::new(["spiffe://cluster.local/ns/shop/sa/db".parse()?]);
//! let outbound = ClientTls::new(pod.slot().clone(), trust, expected)?;
//!
//! // For a connection:
//! pod.ready(Duration::from_secs(5)).await?;
//! let (socket, address) = (tokio::net::TcpStream::connect("10.0.0.1:15008").await?, "10.0.0.1".parse()?);
//! let (_stream, _peer) = outbound.connect(socket, address).await?;
//! # let _ = inbound; Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod backoff;
mod certificate;
mod files;
mod istio_ca;
mod istiod;
mod origination;
mod pem;
pub mod proto;
mod provider;
mod request;
mod slot;
mod source;
mod store;
mod tls;
mod trust;
mod verify;

pub use backoff::Backoff;
pub use certificate::{CertificateError, WorkloadCertificate, identity_of};
pub use files::{CertificateFiles, CertificateFilesByIdentity, TrustFiles};
pub use istio_ca::{IstioCa, IstioCaSettings, chain_and_roots};
pub use istiod::{Istiod, IstiodError, IstiodSecurity};
pub use origination::{Origination, OriginationError};
pub use slot::{Clock, Slot};
pub use source::{CertificateSource, Pending, SourceError};
pub use store::{IdentityStatus, IdentityStore, Lease, StoreSettings, Unavailable};
pub use tls::{ClientTls, HandshakeError, ServerTls, VerifiedPeer};
pub use trust::{Trust, TrustDomains, TrustError};
pub use verify::PeerError;
