//! Comparing systems within rounds.
//!
//! A machine's speed drifts over minutes by more than the differences that matter here, so systems are never
//! compared by their medians: in each round, a system's figure is divided by the other's figure *of that round*, and
//! the median of those ratios is what is reported, with its spread.

use std::collections::BTreeMap;

use crate::results::{Params, Row};

/// One case of a scenario and one metric of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) scenario: String,
    pub(crate) metric: String,
    pub(crate) params: Params,
    pub(crate) unit: String,
}

/// Median and extremes of a figure or a ratio over the rounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// An interval that holds the true median with 95 % confidence (order statistics, no assumption on the
    /// distribution), or the extremes where there are fewer than six rounds.
    pub(crate) interval: (f64, f64),
    pub(crate) rounds: usize,
}

impl Summary {
    /// `None` when there is nothing to summarise.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Summary> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let n = values.len();
        let median = f64::midpoint(values[(n - 1) / 2], values[n / 2]);
        let outside = ranks_outside(n);
        Some(Summary {
            median,
            least,
            most,
            interval: (values[outside], values[n - 1 - outside]),
            rounds: n,
        })
    }
}

/// How many of the lowest (and of the highest) of `n` values lie outside a 95 % interval for the median: the number of
/// values below the true median is binomial with p = 1/2.
fn ranks_outside(n: usize) -> usize {
    let mut term = 0.5f64.powi(n as i32);
    let mut tail = term;
    let mut rank = 0;
    while tail <= 0.025 && rank < n / 2 {
        term *= (n - rank) as f64 / (rank + 1) as f64;
        rank += 1;
        tail += term;
    }
    // `rank` is the first whose tail is too heavy; the interval is [x(rank), x(n+1-rank)], counted from one.
    rank.saturating_sub(1)
}

/// All figures, by case, system and round.
pub(crate) struct Figures(BTreeMap<Case, BTreeMap<String, BTreeMap<u32, f64>>>);

impl Figures {
    pub(crate) fn new(rows: &[Row]) -> Figures {
        let mut figures = BTreeMap::<Case, BTreeMap<String, BTreeMap<u32, f64>>>::new();
        for row in rows {
            let case = Case {
                scenario: row.scenario.clone(),
                metric: row.metric.clone(),
                params: row.params.clone(),
                unit: row.unit.clone(),
            };
            figures
                .entry(case)
                .or_default()
                .entry(row.system.clone())
                .or_default()
                .insert(row.round, row.value);
        }
        Figures(figures)
    }

    /// All cases of one scenario and metric, in order of their params.
    pub(crate) fn cases<'a>(&'a self, scenario: &'a str, metric: &'a str) -> impl Iterator<Item = &'a Case> {
        self.0
            .keys()
            .filter(move |case| case.scenario == scenario && case.metric == metric)
    }

    /// Systems that have figures in this scenario.
    pub(crate) fn systems(&self, scenario: &str) -> Vec<&str> {
        let mut systems: Vec<&str> = self
            .0
            .iter()
            .filter(|(case, _)| case.scenario == scenario)
            .flat_map(|(_, systems)| systems.keys().map(String::as_str))
            .collect();
        systems.sort_by_key(|system| (rank(system), *system));
        systems.dedup();
        systems
    }

    /// A system's figures over the rounds.
    pub(crate) fn summary(&self, case: &Case, system: &str) -> Option<Summary> {
        Summary::of(self.0.get(case)?.get(system)?.values().copied().collect())
    }

    /// A system's figure divided by another's, round by round.
    pub(crate) fn ratio(&self, case: &Case, system: &str, to: &str) -> Option<Summary> {
        let systems = self.0.get(case)?;
        let base = systems.get(to)?;
        let ratios = systems.get(system)?.iter().filter_map(|(round, value)| {
            let base = base.get(round)?;
            (*base > 0.0).then(|| value / base)
        });
        Summary::of(ratios.collect())
    }

    /// The same over all cases of a metric: per round, the geometric mean of the cases' ratios. A difference between two
    /// systems shows here that drowns in the noise of each single case, and there is one question instead of many.
    pub(crate) fn pooled_ratio(&self, scenario: &str, metric: &str, system: &str, to: &str) -> Option<Summary> {
        let mut logarithms = BTreeMap::<u32, Vec<f64>>::new();
        for case in self.cases(scenario, metric) {
            let systems = self.0.get(case)?;
            let (values, base) = (systems.get(system)?, systems.get(to)?);
            for (round, value) in values {
                let base = base.get(round).filter(|base| **base > 0.0 && *value > 0.0);
                logarithms
                    .entry(*round)
                    .or_default()
                    .extend(base.map(|base| (value / base).ln()));
            }
        }
        let means = logarithms.into_values().filter(|logs| !logs.is_empty());
        Summary::of(
            means
                .map(|logs| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
                .collect(),
        )
    }
}

/// Tables go from the network alone over ourselves to the peers.
fn rank(system: &str) -> usize {
    ["direct", "bare", "underpass", "haproxy", "envoy"]
        .iter()
        .position(|name| system.starts_with(name))
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(system: &str, round: u32, value: f64) -> Row {
        Row {
            system: system.into(),
            scenario: "l4-rtt".into(),
            params: Params::new().with("size", 64),
            round,
            metric: "p50_us".into(),
            unit: "us".into(),
            value,
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine slows down fivefold; the proxy costs 1.5 × throughout. Ratios of medians would see nothing of it.
        let rows = [
            row("direct", 1, 10.0),
            row("direct", 2, 50.0),
            row("direct", 3, 20.0),
            row("envoy", 1, 15.0),
            row("envoy", 2, 75.0),
            row("envoy", 4, 1.0),
        ];
        let figures = Figures::new(&rows);
        let case = figures.cases("l4-rtt", "p50_us").next().unwrap();
        let ratio = figures.ratio(case, "envoy", "direct").unwrap();
        assert_eq!(
            (ratio.median, ratio.least, ratio.most, ratio.rounds),
            (1.5, 1.5, 1.5, 2)
        );
        assert_eq!(figures.ratio(case, "haproxy", "direct"), None);
    }

    #[test]
    fn a_pooled_ratio_is_a_geometric_mean_within_each_round() {
        let mut rows = vec![row("a", 1, 8.0), row("b", 1, 1.0), row("a", 2, 3.0), row("b", 2, 1.0)];
        for mut other in [row("a", 1, 2.0), row("b", 1, 1.0), row("a", 2, 1.0), row("b", 2, 3.0)] {
            other.params = Params::new().with("size", 1024);
            rows.push(other);
        }
        let pooled = Figures::new(&rows).pooled_ratio("l4-rtt", "p50_us", "a", "b").unwrap();
        assert!(
            (pooled.most - 4.0).abs() < 1e-9 && (pooled.least - 1.0).abs() < 1e-9,
            "{pooled:?}"
        );
    }

    #[test]
    fn the_median_interval_is_that_of_the_sign_test() {
        // Published tables: n = 6 → [x1, x6], n = 9 → [x2, x8], n = 15 → [x4, x12], n = 20 → [x6, x15].
        for (n, outside) in [(1, 0), (5, 0), (6, 0), (9, 1), (15, 3), (20, 5)] {
            assert_eq!(ranks_outside(n), outside, "{n} rounds");
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let summary = Summary::of(vec![4.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((summary.median, summary.least, summary.most), (3.0, 1.0, 10.0));
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
