//! `/status`: where the mesh and the certificates come from, and how that stands.

use std::time::SystemTime;

use serde_json::{Value, json};
use underpass_certs::IdentityStatus;
use underpass_config::{Identity, WorkloadUid};
use underpass_xds_client::{Connection, ResourceType, Status, TypeStatus};

use crate::identities::{CertificateState, Identities};
use crate::istiod::Told;
use crate::node::Node;

/// The whole view.
pub(super) fn status(node: &Node) -> Value {
    let snapshot = node.snapshot();
    let (settings, mesh) = (&snapshot.config.node, &snapshot.config.mesh);
    let istiod = |told: Told| {
        let (reader, settings) = (node.istiod.as_ref()?.reader(told)?, settings.istiod.as_ref()?);
        Some(subscription(&reader.read(), &settings.address.to_string()))
    };
    json!({
        "istiod": istiod(Told::Mesh),
        "istiod_for_waypoint": istiod(Told::Waypoint),
        "mesh": {
            "generation": snapshot.generation,
            "workloads": mesh.workloads().count(),
            "services": mesh.services().count(),
            "policies": mesh.policies().count(),
        },
        "identities": node.identities.as_ref().map(identities),
        "pods": node.identities.as_ref().map(pods),
    })
}

fn subscription(status: &Status, address: &str) -> Value {
    let (state, since, reason) = match &status.connection {
        Connection::Starting => ("starting", None, None),
        Connection::Connected { since } => ("connected", Some(*since), None),
        Connection::Disconnected { since, reason } => ("disconnected", Some(*since), Some(reason)),
    };
    let of_type = |(kind, of_type): (&ResourceType, &TypeStatus)| {
        let value = json!({
            "resources": of_type.resources,
            "acks": of_type.acks,
            "nacks": of_type.nacks,
            "last_response": of_type.last_response.map(time),
        });
        (kind.to_string(), value)
    };
    let rejected = status.rejected.iter();
    let rejected = rejected.map(|(kind, name, why)| json!({"type": kind.to_string(), "name": name, "reason": why}));
    json!({
        "address": address,
        "state": state,
        "since": since.map(time),
        "reason": reason,
        "synced": status.synced,
        "disconnects": status.disconnects,
        "types": status.types.iter().map(of_type).collect::<serde_json::Map<_, _>>(),
        "rejected": rejected.collect::<Vec<_>>(),
        "rejected_count": status.rejected_count,
        "rejected_updates": status.rejected_updates,
        "waiting": status.waiting.as_ref().map(|waiting| json!({
            "changes": waiting.changes,
            "since": time(waiting.since),
            "reason": waiting.reason,
        })),
    })
}

fn identities(identities: &Identities) -> Value {
    let trust = identities.trust();
    json!({
        "trust_domain": trust.domains().own(),
        "roots": trust.roots(),
        "certificates": identities.status().iter().map(certificate).collect::<Vec<_>>(),
    })
}

fn certificate(status: &IdentityStatus) -> Value {
    let certificate = status.certificate.as_deref();
    json!({
        "identity": status.identity.to_string(),
        "state": CertificateState::of(status).word(),
        "serial": certificate.map(|certificate| certificate.serial()),
        "not_before": certificate.map(|certificate| time(certificate.not_before())),
        "not_after": certificate.map(|certificate| time(certificate.not_after())),
        "renew_at": status.renew_at.map(time),
        "last_error": status.last_error,
        "leases": status.leases,
    })
}

fn pods(identities: &Identities) -> Value {
    let pod = |(uid, identity): &(WorkloadUid, Option<Identity>)| json!({"uid": uid.to_string(), "identity": identity.as_ref().map(Identity::to_string)});
    identities.pods().iter().map(pod).collect()
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
