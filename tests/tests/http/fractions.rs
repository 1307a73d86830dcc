//! Routes that are for a fraction of requests only.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::{Need, available};

use super::client::{Client, get};
use super::upstreams::place::Place;

/// How many requests are asked.
const ASKED: u32 = 2000;

/// Bodies of the answers to all of them, counted.
fn answers(place: &Place, at: SocketAddr) -> BTreeMap<String, u32> {
    let mut client = Client::connect(&place.client, at);
    let mut counted = BTreeMap::new();
    for _ in 0..ASKED {
        client.send(get("/", "").as_bytes());
        let seen = client.answer(false);
        assert_eq!(seen.status, 200);
        *counted.entry(seen.body).or_default() += 1;
    }
    counted
}

/// Six deviations: once in a hundred million runs there are more.
fn assert_share(who: &str, answers: &BTreeMap<String, u32>, body: &str, share: f64) {
    let (got, asked) = (f64::from(answers.get(body).copied().unwrap_or(0)), f64::from(ASKED));
    let deviation = (asked * share * (1.0 - share)).sqrt();
    assert!(
        (got - asked * share).abs() <= 6.0 * deviation,
        "{who}: {got} of {ASKED} are `{body}`, where {share} of them should be: {answers:?}"
    );
}

/// One number is drawn for a request, and each route compares with it: where they count alike, the second gets what it has beyond the first, not its share of what is left.
#[test]
fn routes_get_their_fractions_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let routes =
        "- {match: {runtime_fraction: {numerator: 3000, denominator: 10000}}, direct: {status: 200, body: one}}
      - {match: {runtime_fraction: {numerator: 6000, denominator: 10000}}, direct: {status: 200, body: two}}
      - {direct: {status: 200, body: rest}}
";
    let _proxy = place.start(&(place.yaml(&[], "").replace("  clusters:\n", "") + "      " + routes));
    let route = |fraction: Option<Value>, body: &str| {
        let mut matched = json!({"prefix": "/"});
        if let Some(fraction) = fraction {
            matched["runtime_fraction"] = json!({ "default_value": fraction });
        }
        json!({"match": matched, "direct_response": {"status": 200, "body": {"inline_string": body}}})
    };
    let routes = [
        route(Some(json!({"numerator": 3000, "denominator": "TEN_THOUSAND"})), "one"),
        route(Some(json!({"numerator": 6000, "denominator": "TEN_THOUSAND"})), "two"),
        route(None, "rest"),
    ];
    let more = json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}});
    let _envoy = place.start_envoy(&[], more);
    for (who, at) in [("ours", place.ours()), ("Envoy", place.envoys())] {
        let answers = answers(&place, at);
        // Drawn anew for each route, `two` would have 0.42.
        for (body, share) in [("one", 0.3), ("two", 0.3), ("rest", 0.4)] {
            assert_share(who, &answers, body, share);
        }
    }
}
