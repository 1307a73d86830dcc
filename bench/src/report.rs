//! The readable report: one table per scenario and metric, a row per case, a column per system.

use std::fmt::Write;

use crate::comparison::{Case, Figures, Summary};
use crate::results::Row;
use crate::run::OTHERS;

/// Metrics worth a table, with the scenario they belong to. Everything else is in results.json only.
const TABLES: [(&str, &str); 34] = [
    ("l4-rtt", "p50_us"),
    ("l4-rtt", "p99_us"),
    ("l4-rtt", "cpu_us_per_op"),
    ("l4-stream", "gbytes_per_s"),
    ("l4-stream", "cpu_ms_per_gb"),
    ("l4-programs", "latency_us"),
    ("l4-programs", "operations_per_s"),
    ("l4-programs", "cpu_us_per_op"),
    ("l4-connect", "connections_per_s"),
    ("l4-connect", "p50_us"),
    ("l4-connect", "p99_us"),
    ("l4-connect", "cpu_us_per_op"),
    ("l4-connect", "rss_kb"),
    ("hbone-rtt", "p50_us"),
    ("hbone-rtt", "cpu_us_per_op"),
    ("hbone-stream", "gbytes_per_s"),
    ("hbone-stream", "cpu_ms_per_gb"),
    ("hbone-connect", "connections_per_s"),
    ("hbone-connect", "p50_us"),
    ("hbone-connect", "cpu_us_per_op"),
    ("http1", "requests_per_s"),
    ("http1", "p50_us"),
    ("http1", "p99_us"),
    ("http1", "cpu_us_per_op"),
    ("h2", "requests_per_s"),
    ("h2", "p50_us"),
    ("h2", "p99_us"),
    ("h2", "cpu_us_per_op"),
    ("grpc", "requests_per_s"),
    ("grpc", "p50_us"),
    ("grpc", "p99_us"),
    ("grpc", "cpu_us_per_op"),
    ("http1-secured", "requests_per_s"),
    ("http1-secured", "cpu_us_per_op"),
];

/// Systems that a column of ratios is made against.
const BASES: [&str; 8] = [
    "direct",
    "bare-relay",
    "haproxy",
    "envoy",
    "envoy-hbone",
    "envoy-http",
    "envoy-http+all",
    "underpass-relay-b",
];
/// The system whose ratios are reported.
pub(crate) const OURS: &str = "underpass-relay";
/// The same where a tunnel is measured.
const OUR_TUNNEL: &str = "underpass-hbone";
/// And where HTTP requests are; of several, what does most.
const OUR_HTTP: [&str; 2] = ["underpass-http+all", "underpass-http"];

/// The report as Markdown.
pub(crate) fn write(rows: &[Row], machine: &str, topology: &str) -> String {
    let figures = Figures::new(rows);
    let mut text = format!(
        "# Underpass beside its peers\n\n{machine}.\nTopology: {topology}.\n\nEach cell: median over the rounds \
         (least–most). Ratios are taken within each round; × is the median of those ratios.\n"
    );
    if let Some(others) = Summary::of(
        rows.iter()
            .filter(|row| row.metric == OTHERS)
            .map(|row| row.value)
            .collect(),
    ) {
        let Summary { median, most, .. } = others;
        let _ = writeln!(
            text,
            "Others used {median:.0} % of the machine during a sample (median; at most {most:.0} %)."
        );
    }
    for (scenario, metric) in TABLES {
        write_figures(&mut text, &figures, scenario, metric);
    }
    for scenario in ["memory", "scale"] {
        text.push_str(&single(scenario, rows));
    }
    text
}

fn write_figures(text: &mut String, figures: &Figures, scenario: &str, metric: &str) {
    let cases: Vec<&Case> = figures.cases(scenario, metric).collect();
    let Some(first) = cases.first() else { return };
    let systems: Vec<&str> = figures
        .systems(scenario)
        .into_iter()
        .filter(|system| cases.iter().any(|case| figures.summary(case, system).is_some()))
        .collect();
    let ours = [OURS, OUR_TUNNEL]
        .into_iter()
        .chain(OUR_HTTP)
        .find(|ours| systems.contains(ours));
    let bases: Vec<&str> = BASES
        .into_iter()
        .filter(|base| ours.is_some() && systems.contains(base))
        .collect();
    let ours = ours.unwrap_or(OURS);
    let mut header = vec!["case".to_owned()];
    header.extend(systems.iter().map(|system| (*system).to_owned()));
    header.extend(bases.iter().map(|base| format!("{ours} ÷ {base}")));
    let mut table = vec![header];
    for case in &cases {
        let mut line = vec![case.params.to_string()];
        for system in &systems {
            line.push(figures.summary(case, system).map_or("-".into(), |summary| {
                let times = figures.ratio(case, system, "direct").filter(|_| *system != "direct");
                let times = times.map_or(String::new(), |ratio| format!(" ×{:.2}", ratio.median));
                format!("{}{times}", spread(&summary))
            }));
        }
        line.extend(
            bases
                .iter()
                .map(|base| figures.ratio(case, ours, base).map_or("-".into(), |r| spread(&r))),
        );
        table.push(line);
    }
    let _ = write!(
        text,
        "\n## {scenario}: {metric} ({})\n\n{}",
        first.unit,
        markdown(&table)
    );
}

/// A scenario whose figures are measured once: a table of all of them, or nothing.
pub(crate) fn single(scenario: &str, rows: &[Row]) -> String {
    let mut table = vec![["system", "case", "metric", "value"].map(str::to_owned).to_vec()];
    for row in rows.iter().filter(|row| row.scenario == scenario) {
        table.push(vec![
            row.system.clone(),
            row.params.to_string(),
            row.metric.clone(),
            quantity(row),
        ]);
    }
    if table.len() == 1 {
        String::new()
    } else {
        format!("\n## {scenario}\n\n{}", markdown(&table))
    }
}

fn spread(summary: &Summary) -> String {
    format!(
        "{} ({}–{})",
        number(summary.median),
        number(summary.least),
        number(summary.most)
    )
}

/// A value with its unit, if it has one.
pub(crate) fn quantity(row: &Row) -> String {
    let unit = if row.unit == "1" {
        String::new()
    } else {
        format!(" {}", row.unit)
    };
    format!("{}{unit}", number(row.value))
}

/// Three significant digits, or the whole number where that has more.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A Markdown table whose columns are aligned, so that it reads well in a terminal too.
pub(crate) fn markdown(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (i, line) in table.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if i == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Params;

    #[test]
    fn a_table_shows_medians_spreads_and_ratios_within_rounds() {
        let row = |system: &str, round, value| Row {
            system: system.into(),
            scenario: "l4-rtt".into(),
            params: Params::new().with("placement", "one-core").with("size", 64),
            round,
            metric: "p50_us".into(),
            unit: "us".into(),
            value,
        };
        let rows = [
            row("haproxy", 1, 15.0),
            row("haproxy", 2, 30.0),
            row("direct", 1, 5.0),
            row("direct", 2, 10.0),
            row("underpass-relay", 1, 10.0),
            row("underpass-relay", 2, 20.0),
        ];
        let text = write(&rows, "a machine", "a topology");
        let expected = "\
## l4-rtt: p50_us (us)

| case              | direct           | underpass-relay        | haproxy                | underpass-relay ÷ direct | underpass-relay ÷ haproxy |
|-------------------|------------------|------------------------|------------------------|--------------------------|---------------------------|
| one-core, size 64 | 7.50 (5.00–10.0) | 15.0 (10.0–20.0) ×2.00 | 22.5 (15.0–30.0) ×3.00 | 2.00 (2.00–2.00)         | 0.67 (0.67–0.67)          |
";
        assert!(text.contains(expected), "{text}");
    }
}
