//! What is known of the two workloads that a request is between, for logs, edits and labels that ask for it.
//!
//! Who asks is whom capture or certificate have shown, as the mesh knows it, or else as it says itself (`hbone/described`); whose endpoint was chosen, the mesh says by its
//! address. No field of a request says anything of either: an ambient mesh has no use for Istio's `x-envoy-peer-metadata`, which go on as any other field.

use std::sync::Arc;

use underpass_config::http::{PeerEnd, PeerField};
use underpass_config::{Workload, WorkloadType};

use super::facts::Ends;
use crate::hbone::described::Described;
use crate::source::Source;

/// Writes a field of one end; false, and nothing written, if nothing is known of the end.
pub fn tell(ends: &Ends<'_>, end: PeerEnd, field: PeerField, out: &mut Vec<u8>) -> bool {
    let session = ends.session;
    let config = &session.node.snapshot().config;
    let text = match end {
        PeerEnd::Downstream => of_source(&session.source.refreshed(&config.mesh, &config.node), field),
        PeerEnd::Upstream => ends.endpoint.and_then(|endpoint| {
            let ip = endpoint.ip().to_canonical();
            let workload = config.mesh.workload_at(&config.node.network, ip);
            workload.map(|workload| of_workload(workload, field))
        }),
    };
    out.extend_from_slice(text.as_deref().unwrap_or_default().as_bytes());
    text.is_some()
}

fn of_source(source: &Source, field: PeerField) -> Option<String> {
    match (source.workload(), source.identity()) {
        (_, Some(identity)) if field == PeerField::Identity => Some(identity.to_string()),
        (Some(workload), _) => Some(of_workload(workload, field)),
        (None, Some(identity)) if field == PeerField::Namespace => Some(identity.namespace.to_string()),
        (None, _) => source.described().map(|said| of_described(said, field)),
    }
}

fn of_workload(workload: &Arc<Workload>, field: PeerField) -> String {
    let text = match field {
        PeerField::Name => &workload.name,
        PeerField::Namespace => &workload.namespace,
        PeerField::Workload => &workload.workload_name,
        PeerField::Type => return word(workload.workload_type).to_owned(),
        PeerField::Service | PeerField::App => &workload.canonical_name,
        PeerField::Revision | PeerField::Version => &workload.canonical_revision,
        PeerField::Cluster => &workload.cluster_id,
        PeerField::Identity => return workload.identity.to_string(),
        PeerField::Region => &workload.locality.region,
        PeerField::Zone => &workload.locality.zone,
    };
    text.to_string()
}

fn of_described(said: &Described, field: PeerField) -> String {
    let text = match field {
        PeerField::Name => &said.name,
        PeerField::Workload => &said.workload,
        PeerField::Type => return said.workload_type.map_or("", word).to_owned(),
        PeerField::Service => &said.canonical_name,
        PeerField::Revision => &said.canonical_revision,
        PeerField::App => said.app(),
        PeerField::Version => said.app_version(),
        PeerField::Cluster => &said.cluster,
        PeerField::Region => &said.region,
        PeerField::Zone => &said.zone,
        // Its certificate says these.
        PeerField::Namespace | PeerField::Identity => return String::new(),
    };
    text.to_string()
}

/// As Istio writes it.
fn word(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    }
}
