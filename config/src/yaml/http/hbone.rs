//! `http.clusters[].hbone`.

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use crate::http::UpstreamHbone;
use crate::{Identity, NodeSettings};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TunnelShape<'a> {
    #[serde(borrow)]
    identity: Scalar<'a>,
    peers: Vec<Scalar<'a>>,
    port: Option<Scalar<'a>>,
}

impl TunnelShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<UpstreamHbone> {
        let client = identity(path.field("identity"), &self.identity, reading);
        let place = path.field("peers");
        if self.peers.is_empty() {
            let remedy =
                "write whom the endpoints' certificates are for, for example spiffe://cluster.local/ns/shop/sa/web";
            reading.report(place, "", "is empty, so that nobody would be believed", remedy);
        }
        let peers = self.peers.iter().enumerate();
        let peers = peers.filter_map(|(index, peer)| identity(place.item(index), peer, reading));
        let peers = peers.collect();
        let port = (self.port.as_ref()).and_then(|port| reading.port(path.field("port"), port));
        Some(UpstreamHbone {
            client: client?,
            peers,
            port: port.unwrap_or(UpstreamHbone::PORT),
        })
    }

    /// Reports an identity that `node` has no certificate for.
    pub(super) fn check(&self, path: Path<'_>, node: &NodeSettings, reading: &mut Reading) {
        check_identity(path.field("identity"), &self.identity, node, reading);
    }
}

/// Reports an identity that `node` has no certificate for. Istiod's CA is asked for any.
pub(in crate::yaml) fn check_identity(path: Path<'_>, value: &Scalar<'_>, node: &NodeSettings, reading: &mut Reading) {
    let certificates = &node.identities.certificates;
    let is_asked_for = node.istiod.is_some() && certificates.is_empty();
    // What is none is reported already.
    let Ok(identity) = value.parse::<Identity>() else {
        return;
    };
    if !is_asked_for && !certificates.iter().any(|known| known.identity == identity) {
        let remedy = "add its certificate to `node.identities.certificates`, or write one that is there";
        let problem = "there is no certificate for it to be shown by";
        reading.report(path, value, problem, remedy);
    }
}

pub(in crate::yaml) fn identity(path: Path<'_>, value: &Scalar<'_>, reading: &mut Reading) -> Option<Identity> {
    let identity = value.parse();
    identity
        .inspect_err(|error| {
            let remedy = "write for example spiffe://cluster.local/ns/shop/sa/web";
            reading.report(path, value, format!("{error}"), remedy);
        })
        .ok()
}
