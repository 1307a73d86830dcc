use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Config;
use crate::http::{Cluster, Labels, Outcome, Wish};

fn cluster(fields: &str) -> Arc<Cluster> {
    let config = Config::from_yaml(&format!("http: {{clusters: [{{name: a, {fields}}}]}}")).unwrap();
    config.http.cluster("a").unwrap().clone()
}

/// How often each of some requests went to each endpoint, by the last number of its address.
fn counts(cluster: &Cluster, wish: &Wish<'_>, requests: usize) -> BTreeMap<u8, usize> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let Some(chosen) = cluster.choose(wish, || random.u32(..)) else {
            continue;
        };
        let std::net::IpAddr::V4(ip) = chosen.settings.address.ip() else {
            panic!("an IPv4 address")
        };
        *counts.entry(ip.octets()[3]).or_default() += 1;
    }
    counts
}

fn eject(cluster: &Cluster, endpoint: usize) {
    let endpoint = cluster.endpoints()[endpoint].clone();
    for _ in 0..5 {
        cluster.note(&endpoint, Outcome::NotConnected, Default::default(), || 0);
    }
    assert!(endpoint.is_ejected());
}

const OUTLIERS: &str = "outliers: {max_ejection_percent: 100}";

#[test]
fn turns_of_different_weights_are_mixed() {
    let cluster = cluster(
        "balancing: round-robin, endpoints: [{address: '10.0.0.1:80', weight: 5}, {address: '10.0.0.2:80', weight: 3}, '10.0.0.3:80']",
    );
    let turns: Vec<String> = (0..18)
        .map(|_| {
            cluster
                .choose(&Wish::default(), || 0)
                .unwrap()
                .settings
                .address
                .ip()
                .to_string()
        })
        .collect();
    for (address, count) in [("10.0.0.1", 10), ("10.0.0.2", 6), ("10.0.0.3", 2)] {
        assert_eq!(turns.iter().filter(|turn| *turn == address).count(), count, "{turns:?}");
    }
    let in_a_row = turns
        .windows(3)
        .filter(|three| three[0] == three[1] && three[1] == three[2])
        .count();
    assert_eq!(in_a_row, 0, "{turns:?}");
}

#[test]
fn priorities_take_over_as_endpoints_are_ejected_and_give_back() {
    let endpoints = "{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}, {address: '10.0.0.3:80', priority: 7}";
    let cluster = cluster(&format!(
        "balancing: round-robin, panic_threshold: 0, {OUTLIERS}, endpoints: [{endpoints}]"
    ));
    assert_eq!(counts(&cluster, &Wish::default(), 100), [(1, 50), (2, 50)].into());
    eject(&cluster, 0);
    let after = counts(&cluster, &Wish::default(), 10_000);
    assert!(
        after[&2].abs_diff(7000) < 300 && after[&3].abs_diff(3000) < 300,
        "{after:?}"
    );
    eject(&cluster, 1);
    assert_eq!(counts(&cluster, &Wish::default(), 100), [(3, 100)].into());
    eject(&cluster, 2);
    assert_eq!(counts(&cluster, &Wish::default(), 100), [].into(), "nobody is well");
}

#[test]
fn where_too_few_are_well_ejections_are_disregarded() {
    let endpoints = "'10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80', '10.0.0.4:80'";
    let cluster = cluster(&format!("balancing: round-robin, {OUTLIERS}, endpoints: [{endpoints}]"));
    eject(&cluster, 0);
    eject(&cluster, 1);
    assert_eq!(counts(&cluster, &Wish::default(), 100), [(3, 50), (4, 50)].into());
    eject(&cluster, 2);
    assert_eq!(
        counts(&cluster, &Wish::default(), 100),
        [(1, 25), (2, 25), (3, 25), (4, 25)].into()
    );
}

#[test]
fn localities_get_what_they_weigh_as_far_as_they_are_well() {
    let at = |n: u8, locality: &str| format!("{{address: '10.0.0.{n}:80', locality: {locality}}}");
    let endpoints = [at(1, "r/a"), at(2, "r/a"), at(3, "r/b"), at(4, "r/b"), at(5, "r/c")].join(", ");
    let cluster = cluster(&format!(
        "balancing: round-robin, panic_threshold: 0, {OUTLIERS}, localities: {{r/a: 3, r/b: 1}}, endpoints: [{endpoints}]"
    ));
    assert_eq!(
        counts(&cluster, &Wish::default(), 800),
        [(1, 300), (2, 300), (3, 100), (4, 100)].into()
    );
    // Half of its endpoints take 1.4 times their share: 3 × 0.7 beside 1.
    eject(&cluster, 0);
    let after = counts(&cluster, &Wish::default(), 3100);
    assert_eq!(after, [(2, 2100), (3, 500), (4, 500)].into());
}

#[test]
fn a_hash_leads_to_localities_by_what_they_weigh() {
    let at = |n: u8, locality: &str| format!("{{address: '10.0.0.{n}:80', locality: {locality}}}");
    let endpoints = [at(1, "r/c"), at(2, "r/b"), at(3, "r/a"), at(4, "r/b")].join(", ");
    for balancing in ["ring-hash", "maglev"] {
        let cluster = cluster(&format!(
            "balancing: {balancing}, localities: {{r/a: 3, r/b: 1}}, endpoints: [{endpoints}]"
        ));
        let counts = counts(&cluster, &Wish::default(), 4000);
        let near = |n: u8, expected: usize| counts[&n].abs_diff(expected) < expected / 4;
        assert!(!counts.contains_key(&1), "{balancing}: {counts:?}");
        assert!(near(3, 3000) && near(2, 500) && near(4, 500), "{balancing}: {counts:?}");
    }
}

#[test]
fn a_request_for_a_subset_goes_there_or_where_the_fallback_says() {
    let endpoints = "{address: '10.0.0.1:80', labels: {version: v1, stage: prod}}, {address: '10.0.0.2:80', labels: {version: v2}}, '10.0.0.3:80'";
    let with = |fallback: &str| {
        cluster(&format!(
            "balancing: round-robin, endpoints: [{endpoints}], subsets: {{selectors: [[version], [version, stage]], {fallback}}}"
        ))
    };
    let labels =
        |labels: &[(&str, &str)]| Labels::new(labels.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    let v1 = labels(&[("version", "v1")]);
    let (both, other, none) = (
        labels(&[("stage", "prod"), ("version", "v1")]),
        labels(&[("version", "v3")]),
        labels(&[("stage", "prod")]),
    );
    let of = |cluster: &Cluster, labels: Option<&Labels>| {
        let wish = Wish {
            labels,
            ..Wish::default()
        };
        counts(cluster, &wish, 30).into_keys().collect::<Vec<_>>()
    };
    for (fallback, elsewhere) in [
        ("fallback: none", vec![]),
        ("fallback: any", vec![1, 2, 3]),
        ("fallback: default, default: {version: v2}", vec![2]),
    ] {
        let cluster = with(fallback);
        assert_eq!(of(&cluster, Some(&v1)), [1], "{fallback}");
        assert_eq!(of(&cluster, Some(&both)), [1], "{fallback}");
        for labels in [Some(&other), Some(&none), None] {
            assert_eq!(of(&cluster, labels), elsewhere, "{fallback} {labels:?}");
        }
    }
}

#[test]
fn a_hash_leads_to_one_endpoint_and_a_retry_to_another() {
    for balancing in ["ring-hash", "maglev"] {
        let endpoints: Vec<String> = (1..10).map(|n| format!("'10.0.0.{n}:80'")).collect();
        let cluster = cluster(&format!(
            "balancing: {balancing}, endpoints: [{}]",
            endpoints.join(", ")
        ));
        let mut seen = std::collections::BTreeSet::new();
        for hash in (0..200u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let wish = Wish {
                hash: Some(hash),
                ..Wish::default()
            };
            assert_eq!(counts(&cluster, &wish, 5).len(), 1);
            let first = cluster.choose(&wish, || 0).unwrap().settings.address;
            seen.insert(first);
            let again = Wish {
                tried: &[first],
                ..wish
            };
            assert_ne!(cluster.choose(&again, || 0).unwrap().settings.address, first);
        }
        assert!(seen.len() > 7, "{balancing}: {seen:?}");
        assert!(counts(&cluster, &Wish::default(), 500).len() > 7, "without a hash, any");
    }
}

#[test]
fn who_answers_slowly_gets_less_and_who_fails_at_once_is_not_quick() {
    let cluster = cluster("balancing: peak-ewma, endpoints: ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80']");
    let took = std::time::Duration::from_millis;
    for (endpoint, outcome, millis) in [
        (0, Outcome::Answered(200), 5),
        (1, Outcome::Answered(200), 50),
        (2, Outcome::NotConnected, 0),
    ] {
        cluster.note(&cluster.endpoints()[endpoint].clone(), outcome, took(millis), || 0);
    }
    let counts = counts(&cluster, &Wish::default(), 900);
    // Of two draws, the better: five ninths, three ninths, one ninth.
    assert!(counts[&1] > 450 && counts[&2] > 200 && counts[&3] < 150, "{counts:?}");
}

#[test]
fn a_new_endpoint_comes_to_its_share_slowly() {
    let yaml = |more: &str| {
        format!(
            "http: {{clusters: [{{name: a, balancing: round-robin, endpoints: ['10.0.0.1:80', '10.0.0.2:80'{more}], slow_start: {{window: 1s, minimum_percent: 10}}}}]}}"
        )
    };
    let first = Config::from_yaml(&yaml("")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (second, _) = first.updated(&yaml(", '10.0.0.3:80'")).unwrap();
    let cluster = second.http.cluster("a").unwrap();
    let counts = counts(cluster, &Wish::default(), 1000);
    assert!(counts[&3] < 200 && counts[&1] > 350, "{counts:?}");
}

fn at(n: u8, locality: &str, more: &str) -> String {
    format!("{{address: '10.0.0.{n}:80', locality: {locality}{more}}}")
}

/// Of a subset, its own endpoints count, not those that the cluster has there beside.
#[test]
fn localities_of_a_subset_are_as_well_as_the_subset_is() {
    let endpoints = [
        at(1, "r/a", ", labels: {v: '1'}"),
        at(2, "r/a", ", labels: {v: '2'}"),
        at(3, "r/a", ", labels: {v: '2'}"),
        at(4, "r/b", ", labels: {v: '1'}"),
    ];
    let cluster = cluster(&format!(
        "balancing: round-robin, panic_threshold: 0, {OUTLIERS}, localities: {{r/a: 1, r/b: 1}}, subsets: {{selectors: [[v]]}}, endpoints: [{}]",
        endpoints.join(", ")
    ));
    let one = Labels::new([("v".into(), "1".into())]);
    let wish = Wish {
        labels: Some(&one),
        ..Wish::default()
    };
    assert_eq!(counts(&cluster, &wish, 100), [(1, 50), (4, 50)].into());
}

/// With a hash that always leads to the same of two priorities, the other would get nothing.
#[test]
fn priorities_are_chosen_by_hash_only_where_endpoints_are() {
    let endpoints = "{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}, {address: '10.0.0.3:80', priority: 1}";
    for (balancing, is_by_hash) in [
        ("round-robin", false),
        ("least-request", false),
        ("random", false),
        ("maglev", true),
    ] {
        let cluster = cluster(&format!(
            "balancing: {balancing}, panic_threshold: 0, {OUTLIERS}, endpoints: [{endpoints}]"
        ));
        eject(&cluster, 0);
        let wish = Wish {
            hash: Some(0),
            ..Wish::default()
        };
        assert_eq!(counts(&cluster, &wish, 1000).len() == 1, is_by_hash, "{balancing}");
    }
}

/// What a locality weighs on a ring does not change with each of its endpoints that is ejected: all hashes would lead elsewhere.
#[test]
fn a_ring_goes_by_what_localities_weigh_however_well_they_are() {
    let endpoints = [at(1, "r/a", ""), at(2, "r/a", ""), at(3, "r/b", ""), at(4, "r/b", "")].join(", ");
    let cluster = cluster(&format!(
        "balancing: maglev, panic_threshold: 0, {OUTLIERS}, localities: {{r/a: 1, r/b: 1}}, endpoints: [{endpoints}]"
    ));
    eject(&cluster, 0);
    let mut of_b = 0;
    for hash in 0..20_000u64 {
        let hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let wish = Wish {
            hash: Some(hash),
            ..Wish::default()
        };
        of_b += counts(&cluster, &wish, 1).keys().filter(|at| **at > 2).count();
    }
    assert!(of_b.abs_diff(10_000) < 500, "{of_b} of 20000");
}

/// Endpoints of which nothing is known are tried one request at a time, and don't get all of them.
#[test]
fn an_endpoint_without_history_does_not_get_every_draw() {
    let cluster = cluster("balancing: peak-ewma, endpoints: ['10.0.0.1:80', '10.0.0.2:80']");
    let known = cluster.endpoints()[0].clone();
    cluster.note(
        &known,
        Outcome::Answered(200),
        std::time::Duration::from_millis(5),
        || 0,
    );
    let mut random = fastrand::Rng::with_seed(3);
    let mut held = Vec::new();
    for _ in 0..100 {
        let chosen = cluster.choose(&Wish::default(), || random.u32(..)).unwrap();
        held.push((chosen.settings.address, chosen.hold()));
    }
    let unknown = held
        .iter()
        .filter(|(address, _)| *address != known.settings.address)
        .count();
    assert!((1..50).contains(&unknown), "{unknown}");
}

/// A large ring is made beside those who choose: until it is there, the old one leads on.
#[test]
fn whoever_ejects_does_not_wait_for_a_large_ring() {
    let cluster = cluster(&format!(
        "balancing: maglev, maglev: {{table_size: 5000011}}, panic_threshold: 0, {OUTLIERS}, endpoints: ['10.0.0.1:80', '10.0.0.2:80']"
    ));
    assert_eq!(counts(&cluster, &Wish::default(), 100).len(), 2);
    eject(&cluster, 0);
    // A table of five million places takes longer than this.
    let before = counts(&cluster, &Wish::default(), 100);
    assert_eq!(before.len(), 2, "the choice was held up: {before:?}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while counts(&cluster, &Wish::default(), 100).len() == 2 {
        assert!(std::time::Instant::now() < end, "the new ring does not come");
        std::thread::yield_now();
    }
}

#[test]
fn one_that_is_not_well_is_given_nothing() {
    let endpoints =
        "endpoints: [{address: '10.0.0.1:80', healthy: false}, '10.0.0.2:80', {address: '10.0.0.3:80', healthy: true}]";
    for balancing in ["round-robin", "least-request", "random", "ring-hash", "maglev"] {
        let cluster = cluster(&format!("balancing: {balancing}, {endpoints}"));
        let given = counts(&cluster, &Wish::default(), 200);
        assert!(!given.contains_key(&1) && given.len() == 2, "{balancing}: {given:?}");
    }
    // While so few are well that it can't be true, it does not count; unless the cluster says that it always does.
    let bad = "endpoints: [{address: '10.0.0.1:80', healthy: false}]";
    assert_eq!(counts(&cluster(bad), &Wish::default(), 1).len(), 1);
    assert!(counts(&cluster(&format!("panic_threshold: 0, {bad}")), &Wish::default(), 1).is_empty());
}
