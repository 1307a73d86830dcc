use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::Config;
use crate::http::{Cluster, Wish};

fn cluster(endpoints: usize, outliers: &str) -> Arc<Cluster> {
    let config = Config::from_yaml(&yaml(endpoints, outliers)).unwrap();
    config.http.cluster("a").unwrap().clone()
}

fn yaml(endpoints: usize, outliers: &str) -> String {
    let endpoints: Vec<String> = (1..=endpoints).map(|n| format!("'10.0.0.{n}:80'")).collect();
    let endpoints = endpoints.join(", ");
    format!("http: {{clusters: [{{name: a, balancing: round-robin, endpoints: [{endpoints}]{outliers}}}]}}")
}

/// What is told when an endpoint has some outcomes.
fn note(cluster: &Cluster, endpoint: usize, outcomes: &[Outcome]) -> Vec<Action> {
    let endpoint = cluster.endpoints()[endpoint].clone();
    let told = outcomes
        .iter()
        .flat_map(|outcome| cluster.note(&endpoint, *outcome, Duration::ZERO, || 0));
    told.map(|event| event.action).collect()
}

fn eject(kind: Kind) -> Vec<Action> {
    vec![Action::Eject(kind, true)]
}

const OK: Outcome = Outcome::Answered(200);

#[test]
fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let cluster = cluster(2, ", outliers: {max_ejection_percent: 50, consecutive_5xx: 3}");
    let (bad, gone) = (Outcome::Answered(500), Outcome::NotConnected);
    assert_eq!(note(&cluster, 0, &[bad, bad, OK, bad, gone]), []);
    assert_eq!(note(&cluster, 0, &[Outcome::TimedOut]), eject(Kind::Consecutive5xx));
    assert!(cluster.endpoints()[0].is_ejected());
    // An ejected endpoint is not ejected again, nor another beyond the percentage.
    assert_eq!(note(&cluster, 0, &[bad; 9]), []);
    assert_eq!(note(&cluster, 1, &[bad; 9]), []);
    assert_eq!(
        (
            cluster.detector().ejections(Kind::Consecutive5xx),
            cluster.detector().overflowed()
        ),
        ((4, 1), 3)
    );
}

#[test]
fn gateway_failures_are_enforced_where_that_is_said() {
    let outliers = ", outliers: {max_ejection_percent: 100, consecutive_5xx: 0, consecutive_gateway_failure: 2, enforcing: {consecutive_gateway_failure: PERCENT}}";
    for (percent, is_enforced) in [("0", false), ("100", true)] {
        let cluster = cluster(2, &outliers.replace("PERCENT", percent));
        let bad = Outcome::Answered(502);
        assert_eq!(note(&cluster, 0, &[bad, Outcome::Answered(500), bad]), []);
        let told = note(&cluster, 0, &[bad]);
        assert_eq!(told, [Action::Eject(Kind::ConsecutiveGatewayFailure, is_enforced)]);
        assert_eq!(cluster.endpoints()[0].is_ejected(), is_enforced);
    }
}

#[test]
fn what_is_wrong_on_the_way_is_counted_apart_where_that_is_said() {
    let outliers = ", outliers: {max_ejection_percent: 100, split_local_origin: true, consecutive_5xx: 2, consecutive_local_origin_failure: 3}";
    let cluster = cluster(2, outliers);
    let (bad, gone) = (Outcome::Answered(503), Outcome::NotConnected);
    assert_eq!(note(&cluster, 0, &[gone, bad, gone, gone]), [], "neither in a row");
    assert_eq!(note(&cluster, 0, &[gone]), eject(Kind::ConsecutiveLocalOriginFailure));
    assert_eq!(
        note(&cluster, 1, &[Outcome::Broke; 9]),
        [],
        "there was a connection each time"
    );
    let connected = Outcome::Connected;
    assert_eq!(note(&cluster, 1, &[bad, connected]), [], "of answers it says nothing");
    assert_eq!(note(&cluster, 1, &[bad]), eject(Kind::Consecutive5xx));
}

#[test]
fn each_ejection_is_longer_until_an_endpoint_has_been_well_as_often() {
    let outliers =
        ", outliers: {max_ejection_percent: 100, consecutive_5xx: 1, base_ejection_time: 30s, max_ejection_time: 70s}";
    let cluster = cluster(2, outliers);
    let bad = [Outcome::Answered(500)];
    let lasts = |cluster: &Cluster| {
        let began = Instant::now();
        assert_eq!(note(cluster, 0, &bad), eject(Kind::Consecutive5xx));
        let is_over = |seconds: u64| {
            !cluster
                .compare(began + Duration::from_secs(seconds) + Duration::from_millis(500), || 0)
                .is_empty()
        };
        (1..100).find(|seconds| is_over(*seconds)).unwrap()
    };
    assert_eq!([lasts(&cluster), lasts(&cluster)], [30, 60]);
    let monitor = cluster.endpoints()[0].monitor().unwrap();
    monitor.history().times = 1;
    assert_eq!(lasts(&cluster), 60);
    monitor.history().times = 2;
    assert_eq!(lasts(&cluster), 70, "no longer than the longest");
    let later = Instant::now() + Duration::from_secs(1000);
    for _ in 0..5 {
        cluster.compare(later, || 0);
    }
    assert_eq!(monitor.history().times, 0);
}

#[test]
fn who_succeeds_less_often_than_the_others_is_ejected() {
    let outliers = ", outliers: {max_ejection_percent: 100, success_rate: {request_volume: 20}, consecutive_5xx: 0}";
    let cluster = cluster(6, outliers);
    let run = |failures: [usize; 6]| {
        for (endpoint, failures) in failures.into_iter().enumerate() {
            note(&cluster, endpoint, &vec![Outcome::Answered(500); failures]);
            note(&cluster, endpoint, &vec![OK; 20 - failures]);
        }
        let told = cluster.compare(Instant::now(), || 0);
        told.into_iter()
            .map(|event| (event.endpoint.to_string(), event.action))
            .collect::<Vec<_>>()
    };
    assert_eq!(run([2; 6]), [], "none is worse than the others");
    let expected = [("10.0.0.3:80".to_owned(), Action::Eject(Kind::SuccessRate, true))];
    assert_eq!(run([1, 1, 12, 1, 1, 1]), expected);
}

#[test]
fn who_fails_too_often_is_ejected_whatever_the_others_do() {
    let outliers = ", outliers: {max_ejection_percent: 100, consecutive_5xx: 0, success_rate: {minimum_hosts: 100}, failure_percentage: {threshold: 50, request_volume: 10, minimum_hosts: 2}, enforcing: {failure_percentage: 100}}";
    let cluster = cluster(3, outliers);
    for endpoint in 0..3 {
        note(&cluster, endpoint, &[Outcome::Answered(500); 5]);
        note(&cluster, endpoint, &vec![OK; 5 + endpoint]);
    }
    let told = cluster.compare(Instant::now(), || 0);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].action, Action::Eject(Kind::FailurePercentage, true));
}

/// What was ejected is an endpoint again at once, and is not ejected when the setting comes back.
#[test]
fn without_the_setting_nobody_is_ejected() {
    let outliers = ", outliers: {max_ejection_percent: 100, consecutive_5xx: 1}";
    let first = Config::from_yaml(&yaml(2, outliers)).unwrap();
    let before = first.http.cluster("a").unwrap().clone();
    let share = |cluster: &Cluster| {
        (0..10)
            .filter(|_| {
                cluster
                    .choose(&Wish::default(), || 0)
                    .unwrap()
                    .settings
                    .address
                    .to_string()
                    == "10.0.0.1:80"
            })
            .count()
    };
    note(&before, 0, &[Outcome::TimedOut]);
    assert_eq!(share(&before), 0);
    let (other, _) = first.updated(&yaml(2, &outliers.replace("1}", "2}"))).unwrap();
    let after = other.http.cluster("a").unwrap();
    assert_eq!(share(after), 0, "an ejection outlives an update");
    let (without, _) = other.updated(&yaml(2, "")).unwrap();
    assert_eq!(share(without.http.cluster("a").unwrap()), 5);
    let (again, _) = without.updated(&yaml(2, outliers)).unwrap();
    assert_eq!(share(again.http.cluster("a").unwrap()), 5);
}
