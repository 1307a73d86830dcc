//! Everything translates.

use underpass_config::waypoint::{Chain, EndpointSource, Going, Lead, ORIGINAL_WORKLOAD, Place};
use underpass_xds_client::waypoint::{Held, resolve};

use crate::{SCENARIOS, TYPES, held, recording};

#[test]
fn every_recording_translates_and_is_served() {
    let (mut chains, mut clusters, mut endpoints) = (0, 0, 0);
    for scenario in SCENARIOS {
        let mut held = Held::default();
        for (_, kind) in TYPES {
            let taken = held.take(&recording(scenario, kind)).unwrap();
            let closing: Vec<String> = taken.closed.iter().map(ToString::to_string).collect();
            assert!(closing.is_empty(), "{scenario} {kind}: {closing:#?}");
        }
        assert!(held.unlike.is_empty() && held.closed.is_empty(), "{scenario}");
        assert!(held.place.is_some(), "{scenario}");
        chains += held.chains.len();
        clusters += held.clusters.len();
        endpoints += held
            .endpoints
            .values()
            .map(|set| set.served.as_ref().unwrap().endpoints.len())
            .sum::<usize>();
    }
    assert!(
        chains >= 70 && clusters >= 70 && endpoints >= 90,
        "{chains} {clusters} {endpoints}"
    );
}

/// What is left out, by scenario: nothing but what is not there yet.
#[test]
fn what_is_left_out_is_told() {
    for scenario in SCENARIOS {
        let held = held(scenario);
        let left = held.chains.values().flat_map(|kept| &kept.left_out);
        let left: Vec<String> = left.map(ToString::to_string).collect();
        if scenario == "10-telemetry" {
            let of =
                |why: &&String| why.contains("access_log[1].typed_config.common_config.filter_state_objects_to_log");
            assert_eq!((left.len(), left.iter().filter(of).count()), (6, 6), "{left:#?}");
        } else {
            assert!(left.is_empty(), "{scenario}: {left:#?}");
        }
        assert!(
            held.clusters.values().all(|kept| kept.left_out.is_empty()),
            "{scenario}"
        );
        assert!(
            held.endpoints.values().all(|kept| kept.left_out.is_empty()),
            "{scenario}"
        );
    }
}

/// Every place leads to chains that are there, and every chain to clusters that are there or are known not to be.
#[test]
fn what_leads_somewhere_arrives() {
    for scenario in SCENARIOS {
        let held = held(scenario);
        let mut led = Vec::new();
        held.place.as_ref().unwrap().chains(&mut |name| led.push(name.clone()));
        for name in &led {
            assert!(held.chains.contains_key(name), "{scenario}: {name}");
        }
        for (name, kept) in &held.chains {
            for cluster in clusters_of(kept.served.as_ref().unwrap()) {
                let is_there = held.clusters.contains_key(&*cluster) || cluster == ORIGINAL_WORKLOAD;
                let is_missing = scenario == "06-gateway-api" && cluster.contains("no-such-service");
                let is_missing = is_missing || (scenario == "07-shared-node-waypoint" && cluster.contains("BlackHole"));
                assert!(is_there || is_missing, "{scenario}: {name} leads to {cluster}");
            }
        }
        for (name, kept) in &held.clusters {
            let cluster = kept.served.as_ref().unwrap();
            if let EndpointSource::Named(endpoints) = &cluster.source {
                let set = held.endpoints.get(endpoints);
                let set = set.unwrap_or_else(|| panic!("{scenario}: {name} has no endpoints"));
                let resolved = resolve(cluster, set.served.as_deref().ok());
                let count = set.served.as_ref().unwrap().endpoints.len();
                let left = resolved.left_out.len();
                assert_eq!(resolved.settings.endpoints.len() + left, count, "{scenario}: {name}");
            }
        }
    }
}

fn clusters_of(chain: &Chain) -> Vec<String> {
    use underpass_config::http::RouteAction;
    match chain {
        Chain::Tcp(tcp) => tcp.clusters.iter().map(|cluster| cluster.cluster.to_string()).collect(),
        Chain::Http(http) => {
            let routes = http.table.virtual_hosts().iter().flat_map(|host| &host.routes);
            let forwards = routes.filter_map(|route| match &route.action {
                RouteAction::Forward(forward) => Some(forward),
                _ => None,
            });
            forwards
                .flat_map(|forward| forward.clusters().iter().map(|cluster| cluster.cluster.to_string()))
                .collect()
        }
    }
}

fn lead<'p>(place: &'p Place, authority: Option<&str>, to: &str) -> Option<Lead<'p>> {
    let to = to.parse().unwrap();
    place.lead(&Going { authority, to })
}

#[test]
fn addresses_and_ports_lead_to_services() {
    let held = held("01-baseline");
    let place = held.place.as_ref().unwrap();
    for (to, expected) in [
        (
            "10.96.1.1:80",
            Some("inbound-vip|80|http|server.shop.svc.cluster.local"),
        ),
        (
            "10.96.1.1:9000",
            Some("inbound-vip|9000|tcp|server.shop.svc.cluster.local"),
        ),
        (
            "10.96.1.3:80",
            Some("inbound-vip|80|http|server-v2.shop.svc.cluster.local"),
        ),
        ("10.96.1.3:81", None),
        ("10.96.1.9:80", None),
    ] {
        let expected = expected.map(Into::into);
        assert_eq!(lead(place, None, to), expected.as_ref().map(Lead::Chain), "{to}");
    }
}

#[test]
fn workloads_are_told_apart_by_what_is_spoken() {
    let held = held("09-workload-waypoint");
    let place = held.place.as_ref().unwrap();
    let (http, tcp) = ("direct-http".into(), "direct-tcp".into());
    let by_protocol = Lead::Protocol {
        http: Some(&http),
        other: Some(&tcp),
    };
    assert_eq!(lead(place, None, "10.244.1.11:8080"), Some(by_protocol));
    assert_eq!(lead(place, None, "10.244.1.12:8080"), None);
    for name in ["direct-http", "direct-tcp"] {
        assert_eq!(clusters_of(crate::chain(&held, name)), [ORIGINAL_WORKLOAD], "{name}");
    }
}

#[test]
fn tunnels_that_name_a_service_lead_by_the_name() {
    let held = held("12-networks");
    let place = held.place.as_ref().unwrap();
    let chain: underpass_config::Text = crate::SERVER_TCP.into();
    let named = lead(place, Some("server.shop.svc.cluster.local:9000"), "240.0.0.1:1");
    assert_eq!(named, Some(Lead::Chain(&chain)));
    assert_eq!(
        crate::tcp(&held, &chain).destination,
        Some("10.96.1.1:9000".parse().unwrap())
    );
    assert_eq!(
        lead(place, Some("10.96.1.1:9000"), "10.96.1.1:9000"),
        Some(Lead::Chain(&chain))
    );
}
