//! How a cluster's endpoints are connected to, below HTTP: TLS, and the PROXY protocol before it
//! (`extensions.transport_sockets.tls.v3.UpstreamTlsContext`, `...proxy_protocol.v3.ProxyProtocolUpstreamTransport`); all of it perhaps in a tunnel of HBONE (what
//! Istio's waypoints have as the internal listener and cluster `connect_originate`).
//!
//! **Never silently unverified.** TLS without roots of its own is verified by the system's, and without names of its own by the name that it was
//! opened for; less than that is said in so many words.

use std::path::PathBuf;
use std::sync::Arc;

use super::TextMatch;
use crate::{Identity, Text};

/// What is between TCP and HTTP. Connections of one transport are never used for another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// The tunnel that the rest is in.
    pub hbone: Option<UpstreamHbone>,
    /// TLS, as its client.
    pub tls: Option<UpstreamTls>,
    /// The header that tells an endpoint who the client is; each client then has connections of its own.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// HBONE to a cluster's endpoints: a CONNECT stream to the endpoint's address for each connection, by mutual TLS with the proxy before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHbone {
    /// As whom they are opened: whose certificate is shown.
    pub client: Identity,
    /// Who may be there. Not empty.
    pub peers: Arc<[Identity]>,
    /// Where the proxy before an endpoint listens, at the endpoint's address. Default 15008 (Istio: `HBoneInboundListenPort`).
    pub port: u16,
}

impl UpstreamHbone {
    /// Default of [`UpstreamHbone::port`].
    pub const PORT: u16 = 15008;
}

/// Versions of the PROXY protocol (haproxy.org's `proxy-protocol.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// TLS with a cluster's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that is asked for (SNI). None: the request's host, as with Envoy's `auto_sni`.
    pub server_name: Option<Text>,
    /// Who is believed.
    pub roots: Roots,
    /// Which names a certificate has to have.
    pub names: ServerNames,
    /// What is shown to an endpoint that asks for it.
    pub certificate: Option<KeyPairFiles>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system believes, as Istio has it since 1.20 (`VERIFY_CERTIFICATE_AT_CLIENT`).
    #[default]
    System,
    /// Those in a file, as PEM. Replacing it replaces them.
    File(PathBuf),
    /// Anybody's (`insecure_skip_verify`): the connection is secret, but nobody knows with whom.
    Anybody,
}

/// Which names a believed certificate has to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerNames {
    /// That which was asked for (`auto_san_validation`).
    #[default]
    Asked,
    /// One that fulfils one of these (`match_typed_subject_alt_names`).
    Matching(Vec<NameMatch>),
    /// None: who has signed it is enough. Envoy's way where it is told no names.
    Any,
}

/// A condition on a subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMatch {
    /// Its kind; none: any.
    pub kind: Option<NameKind>,
    /// What it says.
    pub text: TextMatch,
}

/// Kinds of subject alternative names (RFC 5280, section 4.2.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A host name. One that a certificate says with a star for its first label stands for all of them there.
    Dns,
    /// A URI: SPIFFE's.
    Uri,
    /// An IP address.
    Ip,
    /// A mailbox.
    Email,
}

impl NameMatch {
    /// Whether a certificate's name fulfils it.
    pub fn matches(&self, kind: NameKind, name: &str) -> bool {
        if self.kind.is_some_and(|wanted| wanted != kind) {
            return false;
        }
        match (&self.text, kind) {
            (TextMatch::Exact(wanted), NameKind::Dns) => stands_for(name, wanted),
            (text, _) => text.matches(name),
        }
    }
}

/// Whether a certificate's DNS name is `wanted`, or stands for it by a star that is the whole of its first label (RFC 9525, section 6.3).
fn stands_for(name: &str, wanted: &str) -> bool {
    if name.eq_ignore_ascii_case(wanted) {
        return true;
    }
    let (Some(parent), Some((label, rest))) = (name.strip_prefix("*."), wanted.split_once('.')) else {
        return false;
    };
    !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
}

/// A certificate and its key in files. Replacing them replaces the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// The certificate and its intermediates, as PEM.
    pub chain: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label_and_for_nothing_else() {
        for (name, wanted, expected) in [
            ("a.test.example", "A.test.example", true),
            ("*.test.example", "a.test.example", true),
            ("*.test.example", "a.b.test.example", false),
            ("*.test.example", "test.example", false),
            ("*.test.example", ".test.example", false),
            ("*.example", "a.example", false),
            ("a*.test.example", "ab.test.example", false),
            ("*", "a", false),
            ("b.test.example", "a.test.example", false),
        ] {
            assert_eq!(stands_for(name, wanted), expected, "{name} {wanted}");
        }
    }

    #[test]
    fn a_name_of_another_kind_is_another_name() {
        let of = |kind| NameMatch {
            kind,
            text: TextMatch::Exact("spiffe://td/ns/a/sa/b".into()),
        };
        assert!(of(None).matches(NameKind::Uri, "spiffe://td/ns/a/sa/b"));
        assert!(!of(Some(NameKind::Dns)).matches(NameKind::Uri, "spiffe://td/ns/a/sa/b"));
        let prefix = NameMatch {
            kind: Some(NameKind::Uri),
            text: TextMatch::Prefix("spiffe://td/".into()),
        };
        assert!(prefix.matches(NameKind::Uri, "spiffe://td/ns/a/sa/c"));
        assert!(!prefix.matches(NameKind::Uri, "spiffe://other/ns/a/sa/c"));
    }
}
