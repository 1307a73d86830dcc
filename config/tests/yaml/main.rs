//! The YAML front end: what it accepts, what it refuses and how it says so, and how one configuration becomes the next.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

use underpass_config::{Config, Problem};

mod accepted;
mod detours;
mod filters;
mod http;
mod logs;
mod mutated;
mod rejected;
mod reported;
mod surroundings;
mod tracing;
mod updated;

/// A document that uses every field.
const COMPLETE: &str = include_str!("complete.yaml");

/// What is wrong with a document that is not accepted.
fn problems(yaml: &str) -> Vec<Problem> {
    match Config::from_yaml(yaml) {
        Ok(_) => panic!("accepted:\n{yaml}"),
        Err(error) => error.problems().to_vec(),
    }
}
