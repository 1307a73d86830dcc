//! Which endpoint a request goes to, beside Envoy: by hash, by subset, by priority, and around those that fail.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::envoy::address;
use underpass_tests::{Need, available, wait};

use super::place::{ClusterPair, Place, endpoints};
use super::teller::{Running, Teller};
use crate::client::{Seen, ask};

fn tellers<const N: usize>(place: &Place) -> [Running; N] {
    std::array::from_fn(|_| Teller::default().start(&place.world.host(), 9001))
}

fn addresses(tellers: &[Running]) -> Vec<SocketAddr> {
    tellers.iter().map(|teller| teller.address).collect()
}

fn quoted(addresses: &[SocketAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    quoted.join(", ")
}

/// Envoy's `route_config`: each cluster's route with `more` in its action.
fn routes(clusters: &[ClusterPair], more: &Value) -> Value {
    let routes = clusters.iter().map(|pair| {
        let mut action = json!({"cluster": pair.name});
        let fields = action.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        json!({"match": {"prefix": format!("/{}/", pair.name)}, "route": action})
    });
    let routes: Vec<Value> = routes.collect();
    json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}})
}

fn server(seen: &Seen) -> &str {
    seen.header("x-server").unwrap_or_else(|| panic!("{seen:?}"))
}

/// The same request goes to the same endpoint from both, whatever of it is hashed.
#[test]
fn a_hash_leads_to_the_endpoint_that_envoy_finds() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let tellers: [Running; 5] = tellers(&place);
    let at = addresses(&tellers);
    let pair = |name, ours: &str, envoys: Value| {
        let mut fields = json!({"type": "STATIC", "load_assignment": endpoints(&at)});
        fields
            .as_object_mut()
            .expect("an object")
            .extend(envoys.as_object().expect("an object").clone());
        ClusterPair {
            name,
            ours: format!("balancing: {ours}, endpoints: [{}]", quoted(&at)),
            envoys: fields,
        }
    };
    let clusters = [
        pair("ring", "ring-hash", json!({"lb_policy": "RING_HASH"})),
        pair(
            "small",
            "ring-hash, ring_hash: {minimum_ring_size: 7}",
            json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 7}}),
        ),
        pair("maglev", "maglev", json!({"lb_policy": "MAGLEV"})),
        pair(
            "table",
            "maglev, maglev: {table_size: 101}",
            json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 101}}),
        ),
    ];
    let hash = "hash: [{header: x-user, terminal: true}, {query: user}, {cookie: {name: user}}, {header: ':method'}]";
    let policies = json!({"hash_policy": [
        {"header": {"header_name": "x-user"}, "terminal": true},
        {"query_parameter": {"name": "user"}},
        {"cookie": {"name": "user"}},
        {"header": {"header_name": ":method"}},
    ]});
    let ours: Vec<_> = clusters.iter().map(|pair| (pair.name, pair.ours.clone())).collect();
    let _envoy = place.start_envoy(&clusters, routes(&clusters, &policies));
    let _proxy = place.start(&place.yaml(&ours, &format!(", {hash}")));
    for pair in &clusters {
        let mut loads = BTreeMap::<String, u32>::new();
        for n in 0..24 {
            for (path, lines) in [
                (format!("/{}/x", pair.name), format!("x-user: u{n}\r\n")),
                (format!("/{}/x", pair.name), format!("x-user: u{n}\r\nx-user: b\r\n")),
                (format!("/{}/x?user=u{n}&v=1", pair.name), String::new()),
                (format!("/{}/x", pair.name), format!("cookie: a=b; user=\"u{n}\"\r\n")),
                (format!("/{}/x?user=u{n}", pair.name), format!("cookie: user=c{n}\r\n")),
            ] {
                let (ours, envoys) = (place.ask(&path, &lines), place.ask_envoy(&path, &lines));
                assert_eq!(server(&ours), server(&envoys), "{path} {lines}");
                *loads.entry(server(&ours).to_owned()).or_default() += 1;
            }
        }
        assert!(loads.len() >= 4, "{}: {loads:?}", pair.name);
    }
}

/// A client without a cookie is given one, by which it comes back to its endpoint.
#[test]
fn a_client_is_kept_at_its_endpoint_by_a_cookie_as_by_envoys() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let tellers: [Running; 5] = tellers(&place);
    let at = addresses(&tellers);
    let clusters = [ClusterPair {
        name: "ring",
        ours: format!("balancing: ring-hash, endpoints: [{}]", quoted(&at)),
        envoys: json!({"type": "STATIC", "lb_policy": "RING_HASH", "load_assignment": endpoints(&at)}),
    }];
    let policies = json!({"hash_policy": [{"cookie": {"name": "stick", "ttl": "30s", "path": "/ring"}}]});
    let _envoy = place.start_envoy(&clusters, routes(&clusters, &policies));
    let hash = ", hash: [{cookie: {name: stick, ttl: 30s, path: /ring}}]";
    let _proxy = place.start(&place.yaml(&[("ring", clusters[0].ours.clone())], hash));
    let mut shapes = Vec::new();
    for from in [place.ours(), place.envoys()] {
        for _ in 0..6 {
            let get = |lines: &str| ask(&place.client, from, &crate::client::get("/ring/x", lines));
            let first = get("");
            let cookie = first
                .header("set-cookie")
                .unwrap_or_else(|| panic!("{first:?}"))
                .to_owned();
            let (pair, rest) = cookie.split_once(';').expect("a cookie");
            let (name, value) = pair.split_once('=').expect("a cookie");
            shapes.push(format!(
                "{name}={};{rest}",
                value.replace(|c: char| c.is_ascii_hexdigit(), "x")
            ));
            let again = get(&format!("cookie: {pair}\r\n"));
            assert_eq!(
                (server(&again), again.header("set-cookie")),
                (server(&first), None),
                "{from}"
            );
        }
    }
    shapes.dedup();
    assert_eq!(shapes.len(), 1, "{shapes:?}");
}

/// Endpoints that can't be connected to are given nothing after as many failures as Envoy takes, and as many of them as Envoy ejects.
#[test]
fn endpoints_that_fail_are_ejected_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let tellers: [Running; 3] = tellers(&place);
    let closed = place.world.host().at(9);
    let at: Vec<SocketAddr> = addresses(&tellers).into_iter().chain([closed]).collect();
    let pair = |name, ours: &str, envoys: Value| ClusterPair {
        name,
        ours: format!(
            "balancing: round-robin, outliers: {{interval: 300s, {ours}}}, endpoints: [{}]",
            quoted(&at)
        ),
        envoys: json!({"type": "STATIC", "lb_policy": "ROUND_ROBIN", "load_assignment": endpoints(&at), "outlier_detection": envoys}),
    };
    let clusters = [
        pair(
            "three",
            "consecutive_5xx: 3, max_ejection_percent: 25",
            json!({"interval": "300s", "consecutive_5xx": 3, "max_ejection_percent": 25}),
        ),
        pair(
            "none",
            "consecutive_5xx: 3, max_ejection_percent: 24",
            json!({"interval": "300s", "consecutive_5xx": 3, "max_ejection_percent": 24}),
        ),
        pair(
            "one",
            "consecutive_5xx: 3, max_ejection_percent: 1, always_eject_one: true",
            json!({"interval": "300s", "consecutive_5xx": 3, "max_ejection_percent": 1, "always_eject_one_host": true}),
        ),
        pair(
            "gateway",
            "consecutive_5xx: 9, consecutive_gateway_failure: 2, enforcing: {consecutive_gateway_failure: 100}, max_ejection_percent: 50",
            json!({"interval": "300s", "consecutive_5xx": 9, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100, "max_ejection_percent": 50}),
        ),
        pair(
            "local",
            "split_local_origin: true, consecutive_5xx: 1, consecutive_local_origin_failure: 4, max_ejection_percent: 50",
            json!({"interval": "300s", "split_external_local_origin_errors": true, "consecutive_5xx": 1, "consecutive_local_origin_failure": 4, "max_ejection_percent": 50}),
        ),
    ];
    let both = place.start_both(&clusters);
    for pair in &clusters {
        let failures = |at: SocketAddr| {
            let answers =
                (0..40).map(|_| ask(&place.client, at, &crate::client::get(&format!("/{}/x", pair.name), "")));
            answers.filter(|seen| seen.status == 503).count()
        };
        let (ours, envoys) = (failures(place.ours()), failures(place.envoys()));
        assert_eq!(ours, envoys, "{}", pair.name);
    }
    let output = both.0.log();
    let told = |cluster: &str, kind: &str| {
        output
            .lines()
            .any(|line| line.contains("EJECT") && line.contains(cluster) && line.contains(kind))
    };
    assert!(
        told("three", "CONSECUTIVE_5XX") && told("local", "CONSECUTIVE_LOCAL_ORIGIN_FAILURE"),
        "{output}"
    );
    let metrics = both.0.metrics();
    let enforced = metrics.sum(
        "underpass_http_outlier_ejections_enforced_total",
        &[("cluster", "gateway"), ("type", "CONSECUTIVE_GATEWAY_FAILURE")],
    );
    let overflow = metrics.sum(
        "underpass_http_outlier_ejections_overflow_total",
        &[("cluster", "none")],
    );
    assert_eq!((enforced, overflow > 0), (1, true));
    assert_eq!(
        metrics.sum("underpass_http_outlier_ejections_active", &[("cluster", "three")]),
        1
    );
}

/// An ejected endpoint comes back when its time is over; without the setting, at once.
#[test]
fn an_ejected_endpoint_comes_back() {
    let place = Place::new();
    let [well] = tellers(&place);
    let host = place.world.host();
    let at = [well.address, host.at(9001)];
    let fields = |outliers: &str| format!("balancing: round-robin, endpoints: [{}]{outliers}", quoted(&at));
    let outliers =
        ", outliers: {interval: 200ms, base_ejection_time: TIME, consecutive_5xx: 1, max_ejection_percent: 50}";
    let long = outliers.replace("TIME", "1000s");
    let yaml = place.yaml(
        &[
            ("web", fields(&long)),
            ("short", fields(&outliers.replace("TIME", "1s"))),
        ],
        "",
    );
    let proxy = place.start(&yaml);
    let servers = |name: &str| {
        let answers = (0..10).map(|_| place.ask(&format!("/{name}/x"), ""));
        answers
            .filter(|seen| seen.status == 200)
            .map(|seen| server(&seen).to_owned())
            .collect::<std::collections::BTreeSet<_>>()
    };
    for name in ["web", "short"] {
        servers(name);
    }
    let other = Teller::default().start(&host, 9001);
    wait::eventually(wait::SOON, "its time is over", || servers("short").len() == 2);
    assert_eq!(servers("web"), [well.address.ip().to_string()].into());
    proxy.replace_file(&yaml.replace(&long, ""));
    wait::eventually(wait::SOON, "the update is in force", || {
        proxy.config_updates("applied") == 1
    });
    assert_eq!(servers("web").len(), 2, "{}", other.address);
}

/// A request for a subset goes to it, and elsewhere only as far as the fallback says.
#[test]
fn subsets_are_found_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let tellers: [Running; 3] = tellers(&place);
    let [a, b, c] = [0, 1, 2].map(|n| tellers[n].address);
    let fallback = |name, ours: &str, envoys: Value| {
        let labelled = |at: SocketAddr, labels: Value| json!({"endpoint": {"address": address(at)}, "metadata": {"filter_metadata": {"envoy.lb": labels}}});
        let members = [
            labelled(a, json!({"version": "v1"})),
            labelled(b, json!({"version": "v2"})),
            labelled(c, json!({})),
        ];
        let mut subsets = json!({"subset_selectors": [{"keys": ["version"]}]});
        subsets
            .as_object_mut()
            .expect("an object")
            .extend(envoys.as_object().expect("an object").clone());
        ClusterPair {
            name,
            ours: format!(
                "balancing: round-robin, endpoints: [{{address: '{a}', labels: {{version: v1}}}}, {{address: '{b}', labels: {{version: v2}}}}, '{c}'], subsets: {{selectors: [[version]], {ours}}}"
            ),
            envoys: json!({"type": "STATIC", "lb_policy": "ROUND_ROBIN", "lb_subset_config": subsets,
                "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": members}]}}),
        }
    };
    let clusters = [
        fallback("none", "fallback: none", json!({"fallback_policy": "NO_FALLBACK"})),
        fallback("any", "fallback: any", json!({"fallback_policy": "ANY_ENDPOINT"})),
        fallback(
            "default",
            "fallback: default, default: {version: v2}",
            json!({"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"version": "v2"}}),
        ),
    ];
    for version in ["v1", "v3"] {
        let metadata = json!({"metadata_match": {"filter_metadata": {"envoy.lb": {"version": version}}}});
        let ours: Vec<_> = clusters.iter().map(|pair| (pair.name, pair.ours.clone())).collect();
        let _envoy = place.start_envoy(&clusters, routes(&clusters, &metadata));
        let _proxy = place.start(&place.yaml(&ours, &format!(", labels: {{version: {version}}}")));
        for pair in &clusters {
            let seen = |at: SocketAddr| {
                let answers =
                    (0..9).map(|_| ask(&place.client, at, &crate::client::get(&format!("/{}/x", pair.name), "")));
                answers
                    .map(|seen| {
                        seen.header("x-server")
                            .map_or_else(|| format!("{} {}", seen.status, seen.body), str::to_owned)
                    })
                    .collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(seen(place.ours()), seen(place.envoys()), "{} {version}", pair.name);
        }
    }
}

/// A priority that has lost endpoints gives to the next what Envoy's gives, and localities get what they weigh.
#[test]
fn priorities_and_localities_get_what_envoys_get() {
    if !available(&[Need::Envoy]) {
        return;
    }
    const REQUESTS: usize = 600;
    let place = Place::new();
    let tellers: [Running; 3] = tellers(&place);
    let [a, b, c] = [0, 1, 2].map(|n| tellers[n].address);
    let closed = place.world.host().at(9);
    let at = |zone: &str, priority: u32, weight: u32, members: &[SocketAddr]| {
        let members: Vec<Value> = members
            .iter()
            .map(|at| json!({"endpoint": {"address": address(*at)}}))
            .collect();
        json!({"locality": {"region": "r", "zone": zone}, "priority": priority, "load_balancing_weight": weight, "lb_endpoints": members})
    };
    let outliers = "outliers: {interval: 300s, consecutive_5xx: 1, max_ejection_percent: 100}";
    let envoys = |groups: Value| {
        json!({"type": "STATIC", "lb_policy": "ROUND_ROBIN",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "locality_weighted_lb_config": {}},
            "outlier_detection": {"interval": "300s", "consecutive_5xx": 1, "max_ejection_percent": 100},
            "load_assignment": {"cluster_name": "c", "endpoints": groups}})
    };
    let clusters = [
        ClusterPair {
            name: "priorities",
            ours: format!(
                "balancing: round-robin, panic_threshold: 0, {outliers}, endpoints: ['{a}', '{closed}', {{address: '{b}', priority: 1}}]"
            ),
            envoys: envoys(json!([at("a", 0, 1, &[a, closed]), at("b", 1, 1, &[b])])),
        },
        ClusterPair {
            name: "localities",
            ours: format!(
                "balancing: round-robin, panic_threshold: 0, {outliers}, localities: {{r/a: 3, r/b: 1}}, endpoints: [{{address: '{a}', locality: r/a}}, {{address: '{closed}', locality: r/a}}, {{address: '{b}', locality: r/b}}, {{address: '{c}', locality: r/b}}]"
            ),
            envoys: envoys(json!([at("a", 0, 3, &[a, closed]), at("b", 0, 1, &[b, c])])),
        },
    ];
    let _both = place.start_both(&clusters);
    // Of 0.7 and 0.3; of 3 × 0.7 and 1.
    for (pair, expected) in clusters.iter().zip([0.7, 2.1 / 3.1]) {
        for at in [place.ours(), place.envoys()] {
            let mut client = crate::client::Client::connect(&place.client, at);
            let mut first = 0;
            for _ in 0..REQUESTS {
                client.send(crate::client::get(&format!("/{}/x", pair.name), "").as_bytes());
                let seen = client.answer(false);
                first += usize::from(seen.header("x-server") == Some(&a.ip().to_string()));
            }
            let share = first as f64 / REQUESTS as f64;
            assert!(
                (share - expected).abs() < 0.08,
                "{} {at}: {share} of {expected}",
                pair.name
            );
        }
    }
}
