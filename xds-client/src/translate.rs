//! What Istio's resources mean in the model, one module per meaning.
//!
//! Two rules. *A workload or service that is not understood is rejected*: the last good one stays in force, and istiod
//! is told. *A policy that is not understood denies* whatever it guards (see [`authorization`]): to drop it, or the
//! part that is not understood, could let through what it was written to keep out.

pub(crate) mod authorization;
mod gateway;
mod network;
mod service;
mod workload;

use prost::Message;
use thiserror::Error;
use underpass_config::{IdentityError, Interner, MeshChange, Text};

use crate::proto::istio::workload as wire;
use wire::address::Type;

/// What of a mesh is not in its resources.
#[derive(Clone, Debug)]
pub struct MeshFacts {
    /// The trust domain of workloads that name none.
    pub trust_domain: Text,
    /// The namespace whose policies may guard the whole mesh (Istio's root namespace).
    pub root_namespace: Text,
}

/// Istio's defaults.
impl Default for MeshFacts {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
        }
    }
}

/// Why a resource is rejected. Written to be read after "resource NAME: ".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// It has another type than the response says.
    #[error("it is a `{found}`, not a `{expected}`")]
    Type {
        /// The type URL of the resource.
        found: String,
        /// The type URL of the response.
        expected: &'static str,
    },
    /// Its bytes are no such message.
    #[error("it can't be decoded: {0}")]
    Undecodable(String),
    /// It is called otherwise than it calls itself.
    #[error("it says that it is `{0}`")]
    Name(String),
    /// A field must be there.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A number is no address.
    #[error("`{field}` is an address of {length} bytes; it has to be 4 or 16")]
    Address {
        /// Where.
        field: &'static str,
        /// How many bytes it has.
        length: usize,
    },
    /// A number is no prefix length.
    #[error("`{field}` has a prefix of {length} bits")]
    PrefixLength {
        /// Where.
        field: &'static str,
        /// What it says.
        length: u32,
    },
    /// A range of addresses where only single ones are understood.
    #[error("`{field}` is a range of addresses ({length} bits), which is not supported")]
    AddressRange {
        /// Where.
        field: &'static str,
        /// What it says.
        length: u32,
    },
    /// A number is no port.
    #[error("`{field}` {value} is not a port")]
    Port {
        /// Where.
        field: &'static str,
        /// What it says.
        value: u32,
    },
    /// An enumeration has a value that we do not know, or can't serve.
    #[error("`{field}` {value} is not supported")]
    Choice {
        /// Where.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A name is no identity.
    #[error("`{field}` `{id}`: {source}")]
    Identity {
        /// Where.
        field: &'static str,
        /// What it says.
        id: String,
        /// What is wrong with it.
        source: IdentityError,
    },
}

/// Translates one `istio.workload.Address`.
pub(crate) fn address(bytes: &[u8], mesh: &MeshFacts, names: &mut Interner) -> Result<MeshChange, Invalid> {
    let address = wire::Address::decode(bytes).map_err(undecodable)?;
    match address.r#type {
        Some(Type::Workload(workload)) => workload::translate(workload, mesh, names).map(MeshChange::Workload),
        Some(Type::Service(service)) => service::translate(service, names).map(MeshChange::Service),
        None => Err(Invalid::Missing("workload` or `service")),
    }
}

fn undecodable(error: prost::DecodeError) -> Invalid {
    Invalid::Undecodable(error.to_string())
}

/// `text`, which must not be empty.
fn required<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Invalid> {
    if text.is_empty() {
        return Err(Invalid::Missing(field));
    }
    Ok(text)
}
