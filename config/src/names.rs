//! The names by which resources refer to each other, each a type of its own so that one is never taken for another.
//!
//! All are shared texts: a name that occurs in ten thousand places is stored once if the front end interns it
//! (see [`Interner`](crate::Interner)), and cloning one is a reference count.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// An immutable text, shared between all who mention it.
pub type Text = Arc<str>;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Text);

        impl $name {
            /// Takes the text as it is; its form is the front end's to check.
            pub fn new(text: impl Into<Text>) -> Self {
                Self(text.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        /// Maps keyed by this name may be searched with a plain `&str`.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// Identifies a workload in the whole mesh, as Istio writes it: `cluster/group/kind/namespace/name`.
    WorkloadUid
}

name! {
    /// Identifies a service: `namespace/hostname`.
    ServiceKey
}

name! {
    /// Identifies an authorization policy: `namespace/name`.
    PolicyKey
}
