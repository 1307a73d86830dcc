//! The results file: a JSON array, one row per system × scenario × params × round × metric.
//!
//! A command replaces the rows of the scenarios that it measured and keeps those of others, so that `run`, `memory` and
//! `scale` can share a file, while rows of one scenario always come from one run and can be compared.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The settings that set one case of a scenario apart from another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Params(BTreeMap<String, Param>);

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Param {
    /// A count or size.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl From<u64> for Param {
    fn from(number: u64) -> Param {
        Param::Number(number)
    }
}

impl From<&str> for Param {
    fn from(text: &str) -> Param {
        Param::Text(text.to_owned())
    }
}

impl Params {
    pub(crate) fn new() -> Params {
        Params::default()
    }

    /// The same with one more setting.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Param>) -> Params {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// A setting that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Param::Number(number) => Some(*number),
            Param::Text(_) => None,
        }
    }

    /// A setting that is a word.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Param::Text(text) => Some(text),
            Param::Number(_) => None,
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { ", " };
            match value {
                Param::Number(number) => write!(f, "{space}{name} {number}")?,
                Param::Text(text) => write!(f, "{space}{text}")?,
            }
        }
        Ok(())
    }
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) scenario: String,
    pub(crate) params: Params,
    pub(crate) round: u32,
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
}

/// All rows of a results file.
pub(crate) fn read(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("no results in {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a results file of this bench", path.display()))
}

/// Puts `rows` in the place of all earlier rows of their scenarios; returns everything that the file now holds.
pub(crate) fn replace(path: &Path, rows: Vec<Row>) -> Result<Vec<Row>> {
    let mut all = if path.exists() { read(path)? } else { Vec::new() };
    let measured: HashSet<&str> = rows.iter().map(|row| row.scenario.as_str()).collect();
    all.retain(|row| !measured.contains(row.scenario.as_str()));
    all.extend(rows);
    let lines: Vec<String> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    // One row a line: valid JSON that grep and diff can read too.
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(system: &str, scenario: &str, value: f64) -> Row {
        let params = Params::new().with("size", 64).with("placement", "one-core");
        Row {
            system: system.into(),
            scenario: scenario.into(),
            params,
            round: 1,
            metric: "p50_us".into(),
            unit: "us".into(),
            value,
        }
    }

    #[test]
    fn a_new_run_replaces_its_own_scenarios_and_keeps_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        replace(
            &path,
            vec![
                row("direct", "l4-rtt", 1.0),
                row("envoy", "l4-rtt", 2.0),
                row("direct", "memory", 3.0),
            ],
        )
        .unwrap();
        replace(&path, vec![row("direct", "l4-rtt", 4.0)]).unwrap();
        assert_eq!(
            read(&path).unwrap(),
            [row("direct", "memory", 3.0), row("direct", "l4-rtt", 4.0)]
        );
    }

    #[test]
    fn rows_have_the_documented_shape() {
        let json = serde_json::to_value(row("direct", "l4-rtt", 1.5)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"system": "direct", "scenario": "l4-rtt", "params": {"placement": "one-core", "size": 64},
                "round": 1, "metric": "p50_us", "unit": "us", "value": 1.5})
        );
    }
}
