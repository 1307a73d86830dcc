//! The goals of HBONE (issue 6, "Must show", point 6): at least what two Envoys do with a tunnel between them.

use super::{Goal, ratio_goal, unmeasured};
use crate::comparison::Figures;

const OURS: &str = "underpass-hbone";
const PEER: &str = "envoy-hbone";

pub(super) fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals: Vec<Goal> = figures
        .cases("hbone-rtt", "p50_us")
        .map(|case| {
            let what = format!("HBONE round trip p50 ≤ Envoy's, {}", case.params);
            ratio_goal(what, figures.ratio(case, OURS, PEER), |ratio| ratio <= 1.0)
        })
        .collect();
    for (scenario, metric) in [("hbone-stream", "gbytes_per_s"), ("hbone-connect", "connections_per_s")] {
        goals.extend(figures.cases(scenario, metric).map(|case| {
            let what = format!("{scenario} {metric} ≥ Envoy's, {}", case.params);
            ratio_goal(what, figures.ratio(case, OURS, PEER), |ratio| ratio >= 1.0)
        }));
    }
    if goals.is_empty() {
        goals.push(unmeasured("HBONE ÷ Envoy's".to_owned()));
    }
    goals
}
