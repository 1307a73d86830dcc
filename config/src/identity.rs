//! Who a workload is, as its certificate would say.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::Text;

/// A SPIFFE identity of the form that Istio issues; displayed as `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The trust domain, for example `cluster.local`.
    pub trust_domain: Text,
    /// The namespace of the service account.
    pub namespace: Text,
    /// The service account's name.
    pub service_account: Text,
}

/// The scheme that policies leave out and certificates carry (SPIFFE ID specification, section 2).
pub(crate) const SPIFFE_SCHEME: &str = "spiffe://";

impl Identity {
    /// The identity as authorization policies write it: the SPIFFE id without its scheme.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// Why a text is not an [`Identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Another scheme, or none.
    #[error("a SPIFFE id begins with `{SPIFFE_SCHEME}`")]
    Scheme,
    /// Longer than the specification allows.
    #[error("a SPIFFE id has at most {LONGEST} bytes, and its trust domain {LONGEST_TRUST_DOMAIN}")]
    TooLong,
    /// Not what Istio issues.
    #[error("the path of Istio's SPIFFE ids is `/ns/NAMESPACE/sa/SERVICE_ACCOUNT`")]
    Path,
    /// Something that must not be in a trust domain.
    #[error("a trust domain consists of lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain,
    /// Something that must not be in a path.
    #[error("a segment of a SPIFFE id consists of letters, digits, dots, dashes and underscores, not of dots alone")]
    Segment,
}

/// SPIFFE ID specification, sections 2.1 and 2.3.
const LONGEST: usize = 2048;
const LONGEST_TRUST_DOMAIN: usize = 255;

/// Reads a SPIFFE id as strictly as the specification is: percent-encoding, a port, a query or an empty segment would
/// let two spellings name one identity.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(id: &str) -> Result<Self, IdentityError> {
        let rest = id.strip_prefix(SPIFFE_SCHEME).ok_or(IdentityError::Scheme)?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().unwrap_or_default();
        if id.len() > LONGEST || trust_domain.len() > LONGEST_TRUST_DOMAIN {
            return Err(IdentityError::TooLong);
        }
        let in_trust_domain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
        if trust_domain.is_empty() || !trust_domain.bytes().all(in_trust_domain) {
            return Err(IdentityError::TrustDomain);
        }
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Path);
        };
        let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        for segment in [namespace, service_account] {
            if !segment.bytes().all(in_segment) || segment.bytes().all(|byte| byte == b'.') {
                return Err(IdentityError::Segment);
            }
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(f, "{SPIFFE_SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_exact_form_is_an_identity() {
        let rows = [
            (
                "spiffe://cluster.local/ns/shop/sa/web",
                Ok(("cluster.local", "shop", "web")),
            ),
            ("spiffe://my_td-1/ns/Shop/sa/web.v2", Ok(("my_td-1", "Shop", "web.v2"))),
            ("", Err(IdentityError::Scheme)),
            ("cluster.local/ns/shop/sa/web", Err(IdentityError::Scheme)),
            ("SPIFFE://cluster.local/ns/shop/sa/web", Err(IdentityError::Scheme)),
            ("https://cluster.local/ns/shop/sa/web", Err(IdentityError::Scheme)),
            ("spiffe:///ns/shop/sa/web", Err(IdentityError::TrustDomain)),
            ("spiffe://Cluster.local/ns/shop/sa/web", Err(IdentityError::TrustDomain)),
            (
                "spiffe://cluster.local:1/ns/shop/sa/web",
                Err(IdentityError::TrustDomain),
            ),
            (
                "spiffe://user@cluster.local/ns/shop/sa/web",
                Err(IdentityError::TrustDomain),
            ),
            ("spiffe://cluster.local", Err(IdentityError::Path)),
            ("spiffe://cluster.local/", Err(IdentityError::Path)),
            ("spiffe://cluster.local/ns/shop/sa", Err(IdentityError::Path)),
            ("spiffe://cluster.local/ns/shop/sa/web/", Err(IdentityError::Path)),
            ("spiffe://cluster.local/ns/shop/sa/web/more", Err(IdentityError::Path)),
            ("spiffe://cluster.local//ns/shop/sa/web", Err(IdentityError::Path)),
            ("spiffe://cluster.local/sa/web/ns/shop", Err(IdentityError::Path)),
            ("spiffe://cluster.local/ns//sa/web", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/shop/sa/", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/../sa/web", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/shop/sa/w%65b", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/shop/sa/web?x", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/shop/sa/web#x", Err(IdentityError::Segment)),
            ("spiffe://cluster.local/ns/shop/sa/web\0", Err(IdentityError::Segment)),
        ];
        for (id, expected) in rows {
            let expected = expected.map(|(trust_domain, namespace, service_account)| Identity {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
            });
            assert_eq!(id.parse(), expected, "{id:?}");
        }
        let long = format!("spiffe://td/ns/shop/sa/{}", "x".repeat(LONGEST));
        assert_eq!(long.parse::<Identity>(), Err(IdentityError::TooLong));
    }

    proptest! {
        /// Nothing is an identity but its own spelling, so comparing identities is comparing texts.
        #[test]
        fn what_is_read_is_written_alike(id in "spiffe://[a-zA-Z.:/%-]{0,8}/ns/[a-z./%A-]{0,4}/sa/[a-z./%A?-]{0,4}") {
            if let Ok(identity) = id.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), id);
            }
        }
    }
}
