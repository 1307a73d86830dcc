//! The goals of the kernel tier (issue 5, "Must show", point 7).

use super::{Goal, Verdict, ratio_goal, unmeasured};
use crate::comparison::Figures;
use crate::scenarios::ONE_CORE;

const SYSTEM: &str = "underpass-kernel";
const IN_MESH: &str = "underpass-kernel-mesh";
/// How far from 1 the ratio of the round trip in the mesh to that outside may be: the same, as far as this bench can tell.
const SAME_WITHIN: f64 = 0.05;
/// Round trip p50 over direct's with both ends on one core, by message size.
const ONE_CORE_BOUNDS: [(u64, f64); 3] = [(64, 0.65), (1024, 0.85), (16 * 1024, 0.85)];
/// The same with the ends on different cores, where waking up the other core is most of it.
const CROSS_CORE_BOUND: f64 = 0.95;
/// Rate of a saturated stream over direct's.
const STREAM_BOUND: f64 = 1.3;
/// Share of a stream's bytes that go by the kernel.
const SHARE_BOUND: f64 = 0.9;

pub(super) fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals: Vec<Goal> = figures
        .cases("l4-rtt", "p50_us")
        .filter_map(|case| {
            let size = case.params.number("size")?;
            let bound = match case.params.text("placement") == Some(ONE_CORE) {
                true => ONE_CORE_BOUNDS.iter().find(|(of, _)| *of == size)?.1,
                false => CROSS_CORE_BOUND,
            };
            let what = format!("round trip p50 in the kernel ≤ {bound} × direct, {}", case.params);
            let ratio = figures.ratio(case, SYSTEM, "direct");
            Some(ratio_goal(what, ratio, |ratio| ratio <= bound))
        })
        .collect();
    goals.extend(figures.cases("l4-rtt", "p50_us").filter_map(|case| {
        let ratio = figures.ratio(case, IN_MESH, SYSTEM)?;
        let what = format!("round trip p50 in the kernel unchanged by the mesh, {}", case.params);
        Some(ratio_goal(what, Some(ratio), |ratio| ratio <= 1.0 + SAME_WITHIN))
    }));
    goals.extend(figures.cases("l4-stream", "gbytes_per_s").map(|case| {
        let what = format!("stream in the kernel ≥ {STREAM_BOUND} × direct, {}", case.params);
        ratio_goal(what, figures.ratio(case, SYSTEM, "direct"), |ratio| {
            ratio >= STREAM_BOUND
        })
    }));
    goals.extend(figures.cases("l4-stream", "kernel_share").map(|case| {
        let what = format!(
            "share of a stream's bytes in the kernel ≥ {SHARE_BOUND}, {}",
            case.params
        );
        match figures.summary(case, SYSTEM) {
            Some(share) => Goal {
                what,
                figure: format!("{:.3} ({:.3}–{:.3})", share.median, share.least, share.most),
                verdict: Verdict::of(share.median >= SHARE_BOUND),
            },
            None => unmeasured(what),
        }
    }));
    goals.extend(figures.cases("l4-programs", "latency_us").map(|case| {
        let what = format!("latency in the kernel ≤ direct's, {}", case.params);
        ratio_goal(what, figures.ratio(case, SYSTEM, "direct"), |ratio| ratio <= 1.0)
    }));
    if goals.is_empty() {
        goals.push(unmeasured("the kernel tier ÷ direct".to_owned()));
    }
    goals
}
