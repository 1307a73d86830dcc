//! The YAML front end: what it accepts, what it refuses and how it says so, and how one configuration becomes the next.

mod accepted;
mod mutated;
mod rejected;
mod updated;

/// A document that uses every field.
const COMPLETE: &str = include_str!("complete.yaml");
