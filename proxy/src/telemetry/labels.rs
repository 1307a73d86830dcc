//! The label sets of the connection metrics.
//!
//! The names are Istio's standard labels (istio.io, "Istio Standard Metrics") and Kmesh's. What is not known is `unknown`,
//! as both write it.

use underpass_config::Workload;
use underpass_config::http::ServiceName;

use crate::flow_table::{PathEnds, Transport, TunnelPeer};

/// A label set; equal sets are one time series.
pub(super) type Labels = Vec<(&'static str, String)>;

const UNKNOWN: &str = "unknown";

/// How Istio says that both sides have shown who they are.
const MUTUAL_TLS: &str = "mutual_tls";

/// Whose view of a connection a series is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reporter {
    /// The client's side.
    Source,
    /// The destination's side; reported by its own node only.
    Destination,
}

impl Reporter {
    fn word(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// Names of the labels of one end.
struct EndNames {
    workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
}

const SOURCE: EndNames = EndNames {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
};

const DESTINATION: EndNames = EndNames {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
};

fn known(text: &str) -> String {
    if text.is_empty() {
        UNKNOWN.to_owned()
    } else {
        text.to_owned()
    }
}

fn end(names: &EndNames, workload: Option<&Workload>, labels: &mut Labels) {
    let mut push = |name, value: Option<&str>| labels.push((name, known(value.unwrap_or_default())));
    push(names.workload, workload.map(|w| &*w.workload_name));
    push(names.canonical_service, workload.map(|w| &*w.canonical_name));
    push(names.canonical_revision, workload.map(|w| &*w.canonical_revision));
    push(names.namespace, workload.map(|w| &*w.namespace));
    push(names.principal, workload.map(|w| w.identity.to_string()).as_deref());
    push(names.app, workload.map(|w| &*w.canonical_name));
    push(names.version, workload.map(|w| &*w.canonical_revision));
    push(names.cluster, workload.map(|w| &*w.cluster_id));
}

fn set(name: &str, value: String, labels: &mut Labels) {
    let label = labels.iter_mut().find(|(known, _)| *known == name);
    label.into_iter().for_each(|(_, known)| *known = value.clone());
}

/// A client at whose address the mesh knows no such workload: its certificate says its namespace, and it may say the rest.
fn unknown_client(peer: &TunnelPeer, labels: &mut Labels) {
    set(SOURCE.namespace, peer.identity.namespace.to_string(), labels);
    let Some(said) = &peer.described else { return };
    for (name, value) in [
        (SOURCE.workload, &said.workload),
        (SOURCE.canonical_service, &said.canonical_name),
        (SOURCE.canonical_revision, &said.canonical_revision),
        (SOURCE.app, said.app()),
        (SOURCE.version, said.app_version()),
        (SOURCE.cluster, &said.cluster),
    ] {
        set(name, known(value), labels);
    }
}

/// The labels that every connection metric has, but for `response_flags`.
fn common(ends: &PathEnds, reporter: Reporter) -> Labels {
    let mut labels = vec![("reporter", reporter.word().to_owned())];
    end(&SOURCE, ends.source.as_deref(), &mut labels);
    if let Some(peer) = ends.transport.peer() {
        set(SOURCE.principal, peer.identity.to_string(), &mut labels);
        if ends.source.is_none() {
            unknown_client(peer, &mut labels);
        }
    }
    end(&DESTINATION, ends.destination.as_deref(), &mut labels);
    labels.push(("request_protocol", "tcp".to_owned()));
    let security = match (&ends.transport, reporter) {
        (Transport::TunnelOut | Transport::TunnelIn(Some(_)) | Transport::Waypoint { .. }, _) => MUTUAL_TLS,
        // Istio: the source's side cannot know it. Without a tunnel the destination's side knows that there is none.
        (_, Reporter::Source) => UNKNOWN,
        (_, Reporter::Destination) => "none",
    };
    labels.push(("connection_security_policy", security.to_owned()));
    labels
}

fn service(ends: &PathEnds, labels: &mut Labels) {
    let service = ends.service.as_deref();
    let mut push = |name, value: Option<&str>| labels.push((name, known(value.unwrap_or_default())));
    // By a tunnel a connection comes to a pod; which service was asked for, its client says.
    let described = ends.transport.peer().and_then(|peer| peer.described.as_ref());
    let said = described.and_then(|said| said.service.as_ref());
    let hostname = service.map(|s| &s.hostname).or(said.map(|s| &s.hostname));
    let namespace = service.map(|s| &s.namespace).or(said.map(|s| &s.namespace));
    let name = service.map(|s| &s.name).or(said.map(|s| &s.name));
    push("destination_service", hostname.map(|text| &**text));
    push("destination_service_namespace", namespace.map(|text| &**text));
    push("destination_service_name", name.map(|text| &**text));
}

/// Labels of `istio_tcp_*`.
pub(super) fn istio(ends: &PathEnds, reporter: Reporter, response_flags: &'static str) -> Labels {
    let mut labels = common(ends, reporter);
    service(ends, &mut labels);
    labels.push(("response_flags", response_flags.to_owned()));
    labels
}

/// Labels that a waypoint's metrics of requests have of the two ends; the rest says what came of a request. `service` is the cluster's.
pub(super) fn waypoint(ends: &PathEnds, service: Option<&ServiceName>) -> Labels {
    let mut labels = vec![("reporter", "waypoint".to_owned())];
    end(&SOURCE, ends.source.as_deref(), &mut labels);
    if let Some(peer) = ends.transport.peer() {
        set(SOURCE.principal, peer.identity.to_string(), &mut labels);
        if ends.source.is_none() {
            unknown_client(peer, &mut labels);
        }
    }
    if labels
        .iter()
        .any(|(name, value)| *name == SOURCE.canonical_revision && value == UNKNOWN)
    {
        // As `istio.stats` has it.
        set(SOURCE.canonical_revision, "latest".to_owned(), &mut labels);
    }
    end(&DESTINATION, ends.destination.as_deref(), &mut labels);
    let canonical = ends.destination.as_deref().map(|w| &*w.canonical_name);
    let mut push = |name, value: Option<&str>| labels.push((name, known(value.unwrap_or_default())));
    push("destination_service", service.map(|s| &*s.hostname).or(canonical));
    push("destination_service_name", service.map(|s| &*s.name).or(canonical));
    let namespace = service.map(|s| &*s.namespace).filter(|namespace| !namespace.is_empty());
    push(
        "destination_service_namespace",
        namespace.or(ends.destination.as_deref().map(|w| &*w.namespace)),
    );
    labels
}

/// Labels of a waypoint's `istio_tcp_*`.
pub(super) fn waypoint_tcp(ends: &PathEnds, service: Option<&ServiceName>, response_flags: &'static str) -> Labels {
    let mut labels = waypoint(ends, service);
    labels.push(("request_protocol", "tcp".to_owned()));
    labels.push(("connection_security_policy", MUTUAL_TLS.to_owned()));
    labels.push(("response_flags", response_flags.to_owned()));
    labels
}

/// Labels of `kmesh_tcp_workload_*`.
pub(super) fn kmesh_workload(ends: &PathEnds, reporter: Reporter) -> Labels {
    let mut labels = common(ends, reporter);
    let pod = ends.destination.as_deref();
    let address = pod.and_then(|w| w.addresses.first()).map(ToString::to_string);
    let mut push = |name, value: Option<&str>| labels.push((name, known(value.unwrap_or_default())));
    push("destination_pod_address", address.as_deref());
    push("destination_pod_namespace", pod.map(|w| &*w.namespace));
    push("destination_pod_name", pod.map(|w| &*w.name));
    labels.push(("response_flags", "-".to_owned()));
    labels
}

/// Labels of the services' `kmesh_tcp_*`; none for a connection that was not opened to a service.
pub(super) fn kmesh_service(ends: &PathEnds, reporter: Reporter) -> Option<Labels> {
    ends.service.as_ref()?;
    let mut labels = common(ends, reporter);
    service(ends, &mut labels);
    labels.push(("response_flags", "-".to_owned()));
    Some(labels)
}
