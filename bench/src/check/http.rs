//! The goals of the L7 engine (issue 7, "Must show", point 5), and of all that it decides and tells of a request (issue 8, point 5).

use super::{Goal, ratio_goal, unmeasured};
use crate::comparison::{Case, Figures};
use crate::http::OURS;

const WITH_MANY: &str = "underpass-http-1000";
const PEER: &str = "envoy-http";
const SECURED: &str = "http1-secured";
const ALL_OURS: &str = "underpass-http+all";
const ALL_PEERS: &str = "envoy-http+all";
const SCENARIOS: [&str; 3] = ["http1", "h2", "grpc"];
/// Requests per second of a saturated proxy over Envoy's.
const HTTP1_BOUND: f64 = 1.8;
const H2_BOUND: f64 = 1.2;
/// The same where an answer has a mebibyte.
const LONG_BOUND: f64 = 1.0;
/// Latency of one request at a time over Envoy's.
const ALONE_BOUND: f64 = 0.75;
/// How much a thousand routes and clusters may cost.
const MANY_BOUND: f64 = 0.95;

pub(super) fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    for scenario in SCENARIOS {
        for case in figures.cases(scenario, "p50_us") {
            goals.extend(latency_goal(figures, scenario, case));
        }
        for case in figures.cases(scenario, "requests_per_s") {
            goals.extend(rate_goals(figures, scenario, case));
        }
    }
    goals.extend(figures.cases(SECURED, "requests_per_s").map(|case| {
        let what = format!(
            "{SECURED}: requests/s with policies, tokens and a log ≥ {HTTP1_BOUND} × Envoy's, {}",
            case.params
        );
        ratio_goal(what, figures.ratio(case, ALL_OURS, ALL_PEERS), |ratio| {
            ratio >= HTTP1_BOUND
        })
    }));
    if goals.is_empty() {
        goals.push(unmeasured("HTTP ÷ Envoy".to_owned()));
    }
    goals
}

fn is_alone(case: &Case) -> bool {
    case.params.number("connections") == Some(1)
}

fn is_offered(case: &Case) -> bool {
    case.params.number("rate").is_some()
}

/// The median where one request goes at a time, the slow ones where requests come at a rate of their own.
fn latency_goal(figures: &Figures, scenario: &str, case: &Case) -> Option<Goal> {
    if is_offered(case) {
        let slow = figures
            .cases(scenario, "p99_us")
            .find(|slow| slow.params == case.params)?;
        let what = format!("{scenario}: p99 ≤ Envoy's at equal offered load, {}", case.params);
        return Some(ratio_goal(what, figures.ratio(slow, OURS, PEER), |ratio| ratio <= 1.0));
    }
    if !is_alone(case) {
        return None;
    }
    let what = format!(
        "{scenario}: p50 of one at a time ≤ {ALONE_BOUND} × Envoy's, {}",
        case.params
    );
    Some(ratio_goal(what, figures.ratio(case, OURS, PEER), |ratio| {
        ratio <= ALONE_BOUND
    }))
}

fn rate_goals(figures: &Figures, scenario: &str, case: &Case) -> Vec<Goal> {
    if is_offered(case) || is_alone(case) {
        return Vec::new();
    }
    let is_long = case.params.number("bytes").is_some_and(|bytes| bytes > 64 * 1024);
    let bound = match (is_long, scenario) {
        (true, _) => LONG_BOUND,
        (false, "http1") => HTTP1_BOUND,
        (false, _) => H2_BOUND,
    };
    let what = format!("{scenario}: requests/s ≥ {bound} × Envoy's, {}", case.params);
    let many = format!(
        "{scenario}: requests/s with 1 000 routes and clusters ≥ {MANY_BOUND} × with one, {}",
        case.params
    );
    vec![
        ratio_goal(what, figures.ratio(case, OURS, PEER), |ratio| ratio >= bound),
        ratio_goal(many, figures.ratio(case, WITH_MANY, OURS), |ratio| ratio >= MANY_BOUND),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use crate::results::{Params, Row};

    fn row(system: &str, metric: &str, params: Params, value: f64) -> Row {
        Row {
            system: system.into(),
            scenario: "http1".into(),
            params,
            round: 1,
            metric: metric.into(),
            unit: String::new(),
            value,
        }
    }

    #[test]
    fn each_case_is_held_to_its_own_bound() {
        let params = |connections: u64, bytes: u64| Params::new().with("connections", connections).with("bytes", bytes);
        let rows = |rate: f64, p50: f64| {
            vec![
                row(OURS, "requests_per_s", params(64, 1024), rate),
                row(PEER, "requests_per_s", params(64, 1024), 1.0),
                row(OURS, "p50_us", params(1, 1024), p50),
                row(PEER, "p50_us", params(1, 1024), 1.0),
            ]
        };
        let verdicts =
            |rows: &[Row]| -> Vec<Verdict> { goals(&Figures::new(rows)).iter().map(|goal| goal.verdict).collect() };
        let unmeasured = Verdict::NotMeasured;
        assert_eq!(verdicts(&rows(1.8, 0.75)), [Verdict::Pass, Verdict::Pass, unmeasured]);
        assert_eq!(verdicts(&rows(1.7, 0.76)), [Verdict::Fail, Verdict::Fail, unmeasured]);
        assert_eq!(verdicts(&[]), [unmeasured]);
    }
}
