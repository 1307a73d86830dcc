//! The metrics of what this node is told: the connection to istiod, and certificates.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use underpass_xds_client::{Connection, Status};

use crate::identities::{CertificateState, Identities};
use crate::istiod::Standing;

/// A label set.
type Labels = Vec<(&'static str, String)>;

/// One family's series.
type Series = Vec<(Labels, u64)>;

#[derive(Debug)]
pub(super) struct ControlPlaneMetrics {
    istiod: Option<Standing>,
    identities: Option<Identities>,
}

impl ControlPlaneMetrics {
    pub(super) fn new(istiod: Option<Standing>, identities: Option<Identities>) -> Self {
        Self { istiod, identities }
    }
}

impl Collector for ControlPlaneMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(istiod) = &self.istiod {
            encode_subscription(&istiod.read(), &mut encoder)?;
        }
        if let Some(identities) = &self.identities {
            encode_certificates(identities, &mut encoder)?;
        }
        Ok(())
    }
}

fn encode_subscription(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let is_connected = matches!(status.connection, Connection::Connected { .. });
    let of_types = status.types.iter();
    let resources = of_types.map(|(kind, of_type)| (vec![("type", kind.to_string())], of_type.resources as u64));
    gauges(
        encoder,
        "underpass_xds_connected",
        "Whether there is a stream to istiod",
        vec![(Vec::new(), u64::from(is_connected))],
    )?;
    gauges(
        encoder,
        "underpass_xds_resources",
        "Resources of istiod in force, by type",
        resources.collect(),
    )?;
    gauges(
        encoder,
        "underpass_xds_rejected_resources",
        "Resources that are not in force as istiod sent them last",
        vec![(Vec::new(), status.rejected_count as u64)],
    )?;
    counters(
        encoder,
        "underpass_xds_rejected_updates",
        "Updates of istiod that were accepted and could not be put in force",
        vec![(Vec::new(), status.rejected_updates)],
    )?;
    gauges(
        encoder,
        "underpass_xds_waiting_changes",
        "Changes of such updates that are not in force still",
        vec![(
            Vec::new(),
            status.waiting.as_ref().map_or(0, |waiting| waiting.changes as u64),
        )],
    )?;
    let responses = status.types.iter().flat_map(|(kind, of_type)| {
        [("ack", of_type.acks), ("nack", of_type.nacks)].map(|(result, count)| {
            let labels = vec![("type", kind.to_string()), ("result", result.to_owned())];
            (labels, count)
        })
    });
    counters(
        encoder,
        "underpass_xds_responses",
        "Responses of istiod, by type and whether they were accepted",
        responses.collect(),
    )?;
    counters(
        encoder,
        "underpass_xds_disconnects",
        "Streams to istiod that have ended",
        vec![(Vec::new(), status.disconnects)],
    )?;
    let messages = status.types.iter().map(|(kind, of_type)| {
        let labels = vec![("url", kind.url().to_owned())];
        (labels, of_type.acks + of_type.nacks)
    });
    counters(
        encoder,
        "istio_xds_message",
        "Responses of istiod, as ztunnel counts them",
        messages.collect(),
    )?;
    let bytes = status.types.iter().map(|(kind, of_type)| {
        let labels = vec![("url", kind.url().to_owned())];
        (labels, of_type.bytes)
    });
    counters(
        encoder,
        "istio_xds_message_bytes",
        "The size of these responses, as ztunnel counts them",
        bytes.collect(),
    )?;
    let terminations = status.terminations.iter();
    counters(
        encoder,
        "istio_xds_connection_terminations",
        "Connections to istiod that have ended or could not be had, as ztunnel counts them",
        terminations
            .map(|(why, count)| (vec![("reason", why.word().to_owned())], *count))
            .collect(),
    )
}

fn encode_certificates(identities: &Identities, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut by_state: BTreeMap<&'static str, u64> = CertificateState::ALL.map(|state| (state.word(), 0)).into();
    let mut expiries = Vec::new();
    for status in identities.status() {
        *by_state.entry(CertificateState::of(&status).word()).or_default() += 1;
        if let Some(certificate) = &status.certificate {
            let expiry = certificate.not_after().duration_since(SystemTime::UNIX_EPOCH);
            let labels = vec![("identity", status.identity.to_string())];
            expiries.push((labels, expiry.unwrap_or_default().as_secs()));
        }
    }
    let by_state = by_state.into_iter();
    gauges(
        encoder,
        "underpass_certificates",
        "Identities of this node's pods, by the state of their certificate",
        by_state
            .map(|(state, count)| (vec![("state", state.to_owned())], count))
            .collect(),
    )?;
    gauges(
        encoder,
        "underpass_certificate_expiry_timestamp_seconds",
        "When a certificate expires, in seconds since 1970",
        expiries,
    )
}

fn gauges(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, series: Series) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, series: Series) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
