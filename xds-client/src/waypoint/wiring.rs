//! What of Envoy's configuration is only how Envoy is wired: listeners and clusters inside it, through which HBONE comes in and goes out. Here that is the
//! proxy's own business. But it is compared, field by field, with what is known: were something in it that asks more of a connection, dropping it would
//! drop that.
//!
//! A message is written as lines, `path = value`; `wiring/NAME.txt` has those that are known. A line there that ends in `= *` may say anything and may be
//! missing, with all that is below its path; the words behind it say why that is no matter.

use std::collections::BTreeMap;

use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::inspection::{DEEPEST, is_any, key_text, unpacked};
use super::refusal::Refused;

/// Listeners and clusters that are wiring, by name, with what is known of them.
pub const KNOWN: [(Kind, &str, &str); 10] = [
    (
        Kind::Listener,
        "connect_terminate",
        include_str!("wiring/listener/connect_terminate.txt"),
    ),
    (
        Kind::Listener,
        "connect_originate",
        include_str!("wiring/listener/connect_originate.txt"),
    ),
    (
        Kind::Listener,
        "inner_connect_originate",
        include_str!("wiring/listener/inner_connect_originate.txt"),
    ),
    (
        Kind::Listener,
        "outer_connect_originate",
        include_str!("wiring/listener/outer_connect_originate.txt"),
    ),
    (
        Kind::Listener,
        "main_internal",
        include_str!("wiring/listener/main_internal.txt"),
    ),
    (
        Kind::Cluster,
        "main_internal",
        include_str!("wiring/cluster/main_internal.txt"),
    ),
    (Kind::Cluster, "encap", include_str!("wiring/cluster/encap.txt")),
    (
        Kind::Cluster,
        "connect_originate",
        include_str!("wiring/cluster/connect_originate.txt"),
    ),
    (
        Kind::Cluster,
        "inner_connect_originate",
        include_str!("wiring/cluster/inner_connect_originate.txt"),
    ),
    (
        Kind::Cluster,
        "outer_connect_originate",
        include_str!("wiring/cluster/outer_connect_originate.txt"),
    ),
];

/// What a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A listener.
    Listener,
    /// A cluster.
    Cluster,
}

/// What is known of the wiring of this name; none: it is none.
pub(super) fn known(kind: Kind, name: &str) -> Option<&'static str> {
    let mut all = KNOWN.iter();
    all.find(|(of, known, _)| *of == kind && *known == name)
        .map(|(_, _, lines)| *lines)
}

/// Whether a message says what is known; the first that it says otherwise, or does not say.
pub(super) fn check(message: &DynamicMessage, known: &str) -> Result<(), Refused> {
    let mut expected = BTreeMap::new();
    let mut free = Vec::new();
    for line in known.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (path, value) = line.split_once(" = ").unwrap_or((line, ""));
        match value.strip_prefix('*') {
            Some(_) => free.push(path),
            None => {
                expected.insert(path, value);
            }
        }
    }
    for (path, value) in lines(message) {
        if is_below(&path, &free) {
            continue;
        }
        match expected.remove(path.as_str()) {
            Some(known) if known == value => {}
            Some(known) => {
                return Err(Refused::new(
                    path,
                    format!("is {value}, and {known} is what is known of it"),
                ));
            }
            None => return Err(Refused::new(path, format!("is {value}, and nothing is known of it"))),
        }
    }
    match expected.pop_first() {
        Some((path, known)) => Err(Refused::new(
            path,
            format!("is missing, and {known} is what is known of it"),
        )),
        None => Ok(()),
    }
}

/// Whether a path is one of these, or below one.
pub fn is_below(path: &str, these: &[&str]) -> bool {
    let rest = |one: &&str| path.strip_prefix(*one);
    these
        .iter()
        .filter_map(rest)
        .any(|rest| rest.is_empty() || rest.starts_with(['.', '[', '<']))
}

/// What a message says, in lines: paths with values.
pub fn lines(message: &DynamicMessage) -> Vec<(String, String)> {
    let mut found = Vec::new();
    of_message(message, String::new(), 0, &mut found);
    found
}

fn of_message(message: &DynamicMessage, path: String, depth: usize, found: &mut Vec<(String, String)>) {
    if is_any(message)
        && depth < DEEPEST
        && let Some(inner) = unpacked(message)
    {
        let name = inner.descriptor().name().to_owned();
        return of_message(&inner, format!("{path}<{name}>"), depth + 1, found);
    }
    let before = found.len();
    for unknown in message.unknown_fields() {
        found.push((format!("{path}.{}", unknown.number()), format!("{unknown:?}")));
    }
    for (field, value) in message.fields() {
        let path = match path.as_str() {
            "" => field.name().to_owned(),
            path => format!("{path}.{}", field.name()),
        };
        of_value(value, path, depth, found);
    }
    if found.len() == before {
        found.push((path, "{}".to_owned()));
    }
}

fn of_value(value: &Value, path: String, depth: usize, found: &mut Vec<(String, String)>) {
    match value {
        Value::Message(message) => of_message(message, path, depth, found),
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                of_value(item, format!("{path}[{index}]"), depth, found);
            }
        }
        Value::Map(entries) => {
            let sorted: BTreeMap<_, _> = entries.iter().map(|(key, value)| (key_text(key), value)).collect();
            for (key, value) in sorted {
                of_value(value, format!("{path}[{key}]"), depth, found);
            }
        }
        Value::String(text) => found.push((path, format!("{text:?}"))),
        Value::Bool(is) => found.push((path, is.to_string())),
        Value::I32(number) | Value::EnumNumber(number) => found.push((path, number.to_string())),
        Value::U32(number) => found.push((path, number.to_string())),
        Value::I64(number) => found.push((path, number.to_string())),
        Value::U64(number) => found.push((path, number.to_string())),
        other => found.push((path, format!("{other:?}"))),
    }
}
