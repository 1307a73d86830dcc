//! `/clusters`: where requests can go, how well that is, and how much of it is used.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_config::http::{
    Cluster, ClusterEndpoint, Discovery, DnsKind, HttpBalancing, MirrorEnd, OutlierKind, Retries, UpstreamProtocol,
};

use crate::http::pool::usage::{PoolUse, PoolUses};
use crate::node::Node;

/// The whole view, by name.
pub(super) fn clusters(node: &Node) -> Value {
    let snapshot = node.snapshot();
    let uses = node.http.uses();
    let mut all: Vec<_> = snapshot.config.http.clusters.values().collect();
    all.sort_by_key(|cluster| &cluster.settings.name);
    all.into_iter().map(|one| cluster(one, &uses)).collect()
}

fn cluster(cluster: &Cluster, uses: &PoolUses) -> Value {
    let settings = &*cluster.settings;
    let service = settings.service.as_ref().map(|service| &*service.hostname);
    let made = cluster.made();
    let endpoints = cluster.endpoints().iter().chain(&made);
    let of = |one: &ClusterEndpoint| uses.get(&(settings.name.clone(), one.settings.address)).copied();
    let transport = &settings.transport;
    json!({
        "name": &*settings.name,
        "service": service,
        "protocol": protocol(settings.protocol),
        "tls": transport.tls.is_some(),
        "hbone": transport.hbone.is_some(),
        "discovery": discovery(&settings.discovery),
        "balancing": balancing(settings.balancing),
        "priorities": cluster.priorities().iter().map(|one| json!({
            "priority": one.priority,
            "percent": one.percent,
            "panic": one.is_panicking,
        })).collect::<Vec<_>>(),
        "limits": limits(cluster),
        "outliers": settings.outliers.is_some().then(|| outliers(cluster)),
        "mirrored": (!cluster.mirrored().is_empty()).then(|| mirrored(cluster)),
        "endpoints": endpoints.map(|one| endpoint(one, of(one).unwrap_or_default())).collect::<Vec<_>>(),
    })
}

fn protocol(protocol: UpstreamProtocol) -> &'static str {
    match protocol {
        UpstreamProtocol::Http1 => "http1",
        UpstreamProtocol::Http2 => "http2",
        UpstreamProtocol::AsDownstream => "as-downstream",
        UpstreamProtocol::Negotiated => "negotiated",
    }
}

fn discovery(discovery: &Discovery) -> &'static str {
    match discovery {
        Discovery::Static => "static",
        Discovery::Dns(dns) if dns.kind == DnsKind::Logical => "logical-dns",
        Discovery::Dns(_) => "strict-dns",
        Discovery::Original(_) => "original-destination",
        Discovery::Host(_) => "host",
    }
}

fn balancing(balancing: HttpBalancing) -> &'static str {
    match balancing {
        HttpBalancing::RoundRobin => "round-robin",
        HttpBalancing::LeastRequest => "least-request",
        HttpBalancing::Random => "random",
        HttpBalancing::PeakEwma(_) => "peak-ewma",
        HttpBalancing::RingHash(_) => "ring-hash",
        HttpBalancing::Maglev(_) => "maglev",
    }
}

/// Circuit breakers: what is used of each, and how much may be.
fn limits(cluster: &Cluster) -> Value {
    let (limits, used) = (&cluster.settings.breakers, cluster.usage());
    let budget = match limits.retries {
        Retries::Count(_) => None,
        Retries::Budget { percent, minimum } => Some(json!({"percent": percent, "minimum": minimum})),
    };
    let of = |used: u32, limit: u32| json!({"used": used, "limit": limit});
    json!({
        "connections": of(used.connections, limits.connections),
        "pending_requests": of(used.pending_requests, limits.pending_requests),
        "requests": of(used.requests, limits.requests),
        "retries": {"used": used.retries, "limit": used.retries_limit, "budget": budget},
    })
}

fn outliers(cluster: &Cluster) -> Value {
    let kinds = OutlierKind::ALL.into_iter().filter_map(|kind| {
        let (detected, enforced) = cluster.detector().ejections(kind);
        (detected > 0).then(|| (kind.to_string(), json!({"detected": detected, "enforced": enforced})))
    });
    json!({
        "ejected": cluster.endpoints().iter().filter(|endpoint| endpoint.is_ejected()).count(),
        "overflowed": cluster.detector().overflowed(),
        "found": kinds.collect::<serde_json::Map<_, _>>(),
    })
}

fn mirrored(cluster: &Cluster) -> Value {
    let ends = MirrorEnd::ALL
        .into_iter()
        .map(|(end, word)| (word.to_owned(), cluster.mirrored().of(end).into()));
    Value::Object(ends.collect())
}

fn endpoint(endpoint: &ClusterEndpoint, used: PoolUse) -> Value {
    let settings = &endpoint.settings;
    let standing = endpoint.monitor().map(|monitor| monitor.standing(Instant::now()));
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "address": settings.address.to_string(),
        "host": settings.host.as_deref(),
        "weight": settings.weight,
        "priority": settings.priority,
        "locality": &*settings.locality,
        "labels": settings.labels.iter().map(|(name, value)| (name.to_string(), (&**value).into())).collect::<serde_json::Map<_, _>>(),
        "health": match (settings.is_well, endpoint.is_ejected()) {
            (false, _) => "unready",
            (true, true) => "ejected",
            (true, false) => "healthy",
        },
        "outliers": standing.map(|standing| json!({
            "ejections": standing.ejections,
            "ejected_for_ms": standing.ejected.map(|(since, _)| millis(since)),
            "ejection_left_ms": standing.ejected.map(|(_, left)| millis(left)),
            "consecutive_5xx": standing.in_a_row.server_errors,
            "consecutive_gateway_failures": standing.in_a_row.gateway_failures,
            "consecutive_local_origin_failures": standing.in_a_row.local_origin_failures,
        })),
        "requests": endpoint.active(),
        "connections": {
            "idle": endpoint.idle(),
            "http1_idle": used.http1_idle,
            "http2": used.http2_connections,
            "http2_streams": used.http2_streams,
            "waiting": used.waiting,
        },
    })
}
