//! Who a workload is, as its certificate would say.

use std::fmt;

use serde::{Serialize, Serializer};

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
