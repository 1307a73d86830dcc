//! What becomes of each field that is known. `docs/waypoint-fields.md` is made of it, and tests hold it against what was recorded: a field that is said to be
//! used has to make a difference wherever it is set, and one that is listed here must not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost_reflect::MessageDescriptor;

use crate::unknown_fields::messages;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It makes a difference; or what it says is refused, unless it is what is known.
    Used,
    /// It says how Envoy is wired. In listeners and clusters that are only that, it is compared with what is known.
    Wiring,
    /// It makes no difference here.
    Irrelevant,
    /// It only tells of requests, and that is not done yet: it is left out, and told of where it would be missed.
    NotYet,
}

/// A field that is not used, or a message of which none is (`package.Message.*`).
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Its full name; of what is in a struct, with the names in it in brackets.
    pub field: &'static str,
    /// What becomes of it.
    pub becomes: Becomes,
    /// Why.
    pub why: &'static str,
}

const fn irrelevant(field: &'static str, why: &'static str) -> Listed {
    Listed {
        field,
        becomes: Becomes::Irrelevant,
        why,
    }
}

const fn wiring(field: &'static str, why: &'static str) -> Listed {
    Listed {
        field,
        becomes: Becomes::Wiring,
        why,
    }
}

const fn not_yet(field: &'static str, why: &'static str) -> Listed {
    Listed {
        field,
        becomes: Becomes::NotYet,
        why,
    }
}

/// All that are not used.
pub const LISTED: &[Listed] = &include!("fields/listed.rs");

/// What becomes of a field, and why, if it is not used.
pub fn of(field: &str) -> (Becomes, Option<&'static str>) {
    let is_it = |listed: &&Listed| match listed.field.strip_suffix('*') {
        Some(message) => field.starts_with(message),
        None => field == listed.field,
    };
    match LISTED.iter().find(is_it) {
        Some(listed) => (listed.becomes, Some(listed.why)),
        None => (Becomes::Used, None),
    }
}

const HEAD: &str = "# What of a waypoint's configuration is served

Generated from the code (`xds-client/src/waypoint/fields.rs`); a test writes it anew with `UPDATE=1`. It has every field of Envoy's messages that is
known here. **A field that is not here is not known**: if it is set, its chain, cluster or set of endpoints is closed, with the field's number as the
reason. *Used* fields make a difference, or are refused with a reason unless they say the one thing that is known; the others are listed with what becomes of them.

| message | used | not used |
|---|---|---|
";

/// The table, as Markdown.
pub fn table() -> String {
    let mut rows = BTreeMap::new();
    for message in messages() {
        let is_ours = ["envoy.service.", "istio.", "google.", "opentelemetry."]
            .iter()
            .any(|package| message.full_name().starts_with(package));
        if !is_ours && !message.is_map_entry() && message.fields().len() > 0 {
            rows.insert(message.full_name().to_owned(), row(&message));
        }
    }
    let mut out = HEAD.to_owned();
    for (name, row) in rows {
        let _ = writeln!(out, "| `{name}` | {row} |");
    }
    out
}

fn row(message: &MessageDescriptor) -> String {
    let (mut used, mut others) = (Vec::new(), Vec::new());
    for field in message.fields() {
        let (name, full) = (field.name().to_owned(), field.full_name().to_owned());
        let within = format!("{full}[");
        let inner = LISTED.iter().filter(|listed| listed.field.starts_with(&within));
        others.extend(inner.map(|listed| {
            let name = &listed.field[full.len() - name.len()..];
            described(name, listed.becomes, Some(listed.why))
        }));
        match of(&full) {
            (Becomes::Used, _) => used.push(format!("`{name}`")),
            (becomes, why) => others.push(described(&name, becomes, why)),
        }
    }
    format!("{} | {}", used.join(", "), others.join("; "))
}

fn described(name: &str, becomes: Becomes, why: Option<&str>) -> String {
    let kind = match becomes {
        Becomes::Used => "used",
        Becomes::Wiring => "wiring",
        Becomes::Irrelevant => "irrelevant",
        Becomes::NotYet => "not yet",
    };
    format!("`{name}` ({kind}: {})", why.unwrap_or_default())
}
