//! `node.listeners[].tcp_fallback`.

use std::net::SocketAddr;

use serde::Deserialize;

use super::node::fixed_destination;
use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::TcpFallback;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FallbackShape<'a> {
    #[serde(borrow)]
    pub(super) destination: Scalar<'a>,
    detection_timeout: Option<Scalar<'a>>,
}

impl FallbackShape<'_> {
    /// That of a listener at `listens_on`.
    pub(super) fn compile(&self, path: Path<'_>, listens_on: SocketAddr, reading: &mut Reading) -> Option<TcpFallback> {
        let timeout = path.field("detection_timeout");
        let default = TcpFallback::DETECTION_TIMEOUT;
        let detection_timeout = reading.duration_or_zero(timeout, self.detection_timeout.as_ref(), default);
        Some(TcpFallback {
            destination: fixed_destination(path.field("destination"), &self.destination, listens_on, reading)?,
            detection_timeout,
        })
    }
}
