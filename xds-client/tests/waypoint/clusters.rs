//! What users wrote as DestinationRule and ServiceEntry, and where endpoints are.

use std::sync::Arc;
use std::time::Duration;

use underpass_config::http::{
    Discovery, DnsFamily, DnsKind, HostDiscovery, HttpBalancing, OutlierKind, ProxyProtocol, Reach, Retries, Roots,
    ServerNames, UpstreamProtocol,
};
use underpass_config::waypoint::{EndpointSet, EndpointSource, EndpointTransport, WaypointCluster};
use underpass_xds_client::waypoint::{Held, Resolved, resolve};

use crate::{SERVER, held, http, tcp};

fn cluster<'h>(held: &'h Held, name: &str) -> &'h WaypointCluster {
    let kept = held
        .clusters
        .get(name)
        .unwrap_or_else(|| panic!("there is no cluster {name}"));
    kept.served.as_ref().unwrap_or_else(|why| panic!("{why}"))
}

fn resolved(held: &Held, name: &str) -> Resolved {
    let cluster = cluster(held, name);
    let set = match &cluster.source {
        EndpointSource::Named(set) => held.endpoints[set].served.as_ref().ok(),
        _ => None,
    };
    resolve(cluster, set.map(Arc::as_ref))
}

const SERVER_V1: &str = "inbound-vip|80|http|server-v1.shop.svc.cluster.local";
const SERVER_V2: &str = "inbound-vip|80|http|server-v2.shop.svc.cluster.local";

#[test]
fn a_destination_rule_is_the_clusters_settings() {
    let held = held("05-traffic-management");
    let settings = &cluster(&held, SERVER).settings;
    assert_eq!(settings.balancing, HttpBalancing::LeastRequest);
    assert_eq!(settings.connect_timeout, Duration::from_secs(3));
    assert_eq!(settings.idle_timeout, Duration::from_secs(30));
    assert_eq!(settings.protocol, UpstreamProtocol::Http2, "h2UpgradePolicy: UPGRADE");
    let limits = settings.breakers;
    assert_eq!(
        (limits.connections, limits.pending_requests, limits.requests),
        (100, 50, 200)
    );
    assert_eq!(limits.retries, Retries::Count(4));
    assert_eq!(settings.connections.requests, 10);
    assert_eq!(settings.connections.lifetime, Some(Duration::from_secs(3600)));
    let keepalive = settings.connections.keepalive.unwrap();
    assert_eq!(keepalive.time, Some(Duration::from_secs(60)));
    assert_eq!(
        (keepalive.interval, keepalive.probes),
        (Some(Duration::from_secs(10)), Some(3))
    );
    assert_eq!(settings.panic_threshold, 20, "minHealthPercent");
    let outliers = settings.outliers.as_ref().unwrap();
    let consecutive = outliers.consecutive;
    assert_eq!((consecutive.server_errors, consecutive.gateway_failures), (5, 3));
    assert_eq!(
        (consecutive.local_origin_failures, outliers.split_local_origin),
        (2, true)
    );
    assert_eq!(
        (outliers.interval, outliers.base_ejection_time),
        (Duration::from_secs(10), Duration::from_secs(30))
    );
    assert_eq!(outliers.max_ejection_percent, 50);
    let enforced = |kind: OutlierKind| outliers.enforcing[kind as usize];
    assert_eq!(enforced(OutlierKind::ConsecutiveGatewayFailure), 100);
    assert_eq!(enforced(OutlierKind::SuccessRate), 0);
    let service = settings.service.as_ref().unwrap();
    assert_eq!(
        (&*service.hostname, &*service.name, &*service.namespace),
        ("server.shop.svc.cluster.local", "server", "shop")
    );
}

#[test]
fn subsets_are_clusters_of_their_own() {
    let held = held("05-traffic-management");
    let of = |subset: &str| {
        cluster(
            &held,
            &format!("inbound-vip|80|http/{subset}|server.shop.svc.cluster.local"),
        )
    };
    assert!(matches!(of("v1").settings.balancing, HttpBalancing::RingHash(_)));
    assert_eq!(of("v2").settings.balancing, HttpBalancing::Random);
    let endpoints = |subset: &str| {
        let name = format!("inbound-vip|80|http/{subset}|server.shop.svc.cluster.local");
        let settings = resolved(&held, &name).settings;
        settings
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(endpoints("v1"), ["10.244.1.11:8080"]);
    assert_eq!(endpoints("v2"), ["10.244.2.11:8080"]);
}

/// How its endpoints are reached, in their order.
fn reach(resolved: &Resolved) -> Vec<&Reach> {
    let endpoints = resolved.settings.endpoints.iter();
    endpoints.map(|endpoint| &endpoint.reach).collect()
}

#[test]
fn what_is_below_http() {
    let held = held("05-traffic-management");
    let announced = resolved(&held, SERVER_V1).settings;
    assert_eq!(announced.transport.proxy_protocol, Some(ProxyProtocol::V2));
    assert!(matches!(announced.balancing, HttpBalancing::Maglev(table) if table.table_size == 65_537));
    let expected = Retries::Budget {
        percent: 20,
        minimum: 3,
    };
    assert_eq!(announced.breakers.retries, expected);

    let tls = resolved(&held, SERVER_V2);
    let transport = &tls.settings.transport;
    let upstream = transport.tls.as_ref().unwrap();
    assert_eq!(upstream.server_name.as_deref(), Some("server-v2.example.com"));
    assert_eq!(upstream.roots, Roots::System);
    let ServerNames::Matching(names) = &upstream.names else {
        panic!("{upstream:?}")
    };
    assert!(names[0].text.matches("server-v2.example.com") && names.len() == 1);
    assert_eq!(reach(&tls), [&Reach::Hbone { via: None }], "in the tunnel");
    assert_eq!(tls.settings.balancing, HttpBalancing::RoundRobin);
    assert!(!tls.settings.localities.is_empty());
}

#[test]
fn endpoints_are_reached_by_hbone_where_they_say_so() {
    let held = held("01-baseline");
    let server = resolved(&held, SERVER);
    let endpoints: Vec<_> = server
        .settings
        .endpoints
        .iter()
        .map(|endpoint| {
            (
                endpoint.address.to_string(),
                endpoint.locality.to_string(),
                endpoint.weight,
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.244.1.11:8080".to_owned(), "region-1/zone-a".to_owned(), 1),
            ("10.244.2.11:8080".to_owned(), "region-1/zone-b".to_owned(), 1)
        ]
    );
    assert_eq!(reach(&server), [&Reach::Hbone { via: None }; 2]);
    let set = held.endpoints[SERVER].served.as_ref().unwrap();
    assert_eq!(&*set.endpoints[0].workload, "server-v1;shop;server;v1;Kubernetes");
    assert_eq!(server.settings.panic_threshold, 0);
}

#[test]
fn one_that_is_not_well_is_known_not_to_be() {
    let held = held("12-locality");
    let server = resolved(&held, SERVER);
    let well = |address: &str| {
        let mut endpoints = server.settings.endpoints.iter();
        endpoints
            .find(|endpoint| endpoint.address.to_string() == address)
            .unwrap()
            .is_well
    };
    assert!(well("10.244.1.11:8080") && !well("10.244.1.19:8080"));
    let far = held
        .endpoints
        .values()
        .flat_map(|set| &set.served.as_ref().unwrap().endpoints);
    assert!(far.map(|endpoint| endpoint.settings.priority).max() > Some(0));
}

#[test]
fn other_networks_are_reached_through_their_gateways() {
    let held = held("12-networks");
    let server = resolved(&held, SERVER);
    let at = server
        .settings
        .endpoints
        .iter()
        .position(|endpoint| endpoint.address.port() == 15008)
        .unwrap();
    assert_eq!(server.settings.endpoints[at].address.to_string(), "172.18.7.100:15008");
    let expected = Reach::Network {
        target: "server.shop.svc.cluster.local:80".into(),
    };
    assert_eq!(server.settings.endpoints[at].reach, expected);
    assert!(server.left_out.is_empty());
}

#[test]
fn service_entries() {
    let held = held("08-service-entry");
    let dns = |name: &str| match &cluster(&held, name).settings.discovery {
        Discovery::Dns(dns) => dns.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let api = dns("inbound-vip|80|http|api.example.com");
    assert_eq!(
        (api.kind, api.family, api.holds_for_ttl),
        (DnsKind::Strict, DnsFamily::V4Only, true)
    );
    assert_eq!(api.refresh, Duration::from_secs(60));
    assert_eq!((&*api.names[0].host, api.names[0].port), ("api.example.com", 80));
    let tls = resolved(&held, "inbound-vip|80|http|api.example.com")
        .settings
        .transport
        .tls
        .clone()
        .unwrap();
    assert_eq!(
        (tls.server_name, tls.roots, tls.names),
        (None, Roots::System, ServerNames::Asked)
    );
    let multi = dns("inbound-vip|8080|http|multi.example.com");
    let names: Vec<_> = multi
        .names
        .iter()
        .map(|one| (&*one.host, one.port, one.weight))
        .collect();
    assert_eq!(names, [("one.example.net", 80, 1), ("two.example.net", 8080, 3)]);
    assert_eq!(dns("inbound-vip|80|http|rr.example.com").kind, DnsKind::Logical);
    let none = &cluster(&held, "inbound-vip|80|http|none.example.com").source;
    assert_eq!(*none, EndpointSource::Original);
    let discovery = |name: &str| resolved(&held, name).settings.discovery;
    let original = discovery("inbound-vip|80|http|none.example.com");
    assert_eq!(original, Discovery::Original(Reach::Direct));
    let wild = "inbound-vip|80|http|*.wild.example.com";
    assert!(matches!(cluster(&held, wild).source, EndpointSource::Dynamic(_)));
    assert_eq!(
        discovery(wild),
        Discovery::Host(HostDiscovery {
            family: DnsFamily::V4Only,
            servers: Vec::new()
        })
    );
    assert_eq!(http(&held, wild).dynamic.unwrap().family, DnsFamily::V4Only);
    let (names, port) = tcp(&held, "inbound-vip|443|tcp|*.wild.example.com").dynamic.unwrap();
    assert_eq!((names.family, port), (DnsFamily::V4Only, 443));
    let db = resolved(&held, "inbound-vip|5432|tcp|db.internal");
    assert_eq!(reach(&db), [&Reach::Direct; 2]);
    assert!(db.left_out.is_empty());
}

/// Sidecars' own mutual TLS is nothing that is spoken here; an endpoint that asks for it is not sent plain text instead.
#[test]
fn an_endpoint_behind_a_sidecar_is_left_out() {
    let held = held("03-l7-authorization");
    let cluster = cluster(&held, "outbound|9000||ext-authz.auth.svc.cluster.local");
    assert_eq!(cluster.settings.protocol, UpstreamProtocol::Http2);
    assert!(
        cluster
            .transports
            .iter()
            .any(|(_, transport)| *transport == EndpointTransport::Sidecar)
    );
    let set = held.endpoints["outbound|9000||ext-authz.auth.svc.cluster.local"]
        .served
        .as_ref()
        .unwrap();
    let plain = resolve(cluster, Some(set));
    assert_eq!((plain.settings.endpoints.len(), plain.left_out.len()), (1, 0));
    let mut behind = EndpointSet::clone(set);
    behind.endpoints[0].transport = underpass_config::http::Labels::new([("tlsMode".into(), "istio".into())]);
    let refused = resolve(cluster, Some(&behind));
    assert!(refused.settings.endpoints.is_empty());
    assert!(refused.left_out[0].why.contains("sidecars"), "{:?}", refused.left_out);
}
