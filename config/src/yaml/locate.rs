//! Where in the text a problem is. The document is read a second time, slowly, and only if there is a problem.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DefaultMessageFormatter, Error, Location, MessageFormatter, Spanned};

use super::nearest::Nearest;
use super::reading::shown;
use super::{DocumentShape, options};
use crate::error::{Problem, Problems, TextPosition};

/// The problem with a text that has no content, which would take the whole mesh away if it were taken for a configuration:
/// an editor that empties the file before it writes it must not do that.
pub(super) fn empty() -> Problem {
    Problem {
        path: String::new(),
        position: None,
        value: String::new(),
        problem: "the document is empty".to_owned(),
        remedy: "start from examples/relay.yaml".to_owned(),
    }
}

/// The problem behind the parser's `error`, with the path that the fast reading did not follow.
pub(super) fn malformed(text: &str, error: Error) -> Problem {
    let mut path = String::new();
    let again = serde_saphyr::with_deserializer_from_str_with_options(text, options(text), |deserializer| {
        serde_path_to_error::deserialize::<_, Option<DocumentShape<'_>>>(deserializer).map_err(|located| {
            path = located.path().to_string();
            located.into_inner()
        })
    });
    let error = again.err().unwrap_or(error);
    describe(path, unwrapped(&error))
}

/// The error without what the parser has wrapped around it.
fn unwrapped(mut error: &Error) -> &Error {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } = error {
        error = inner;
    }
    error
}

fn describe(path: String, error: &Error) -> Problem {
    let mut value = String::new();
    let (problem, remedy) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            value = shown(field);
            ("there is no such field".to_owned(), did_you_mean(field, expected))
        }
        Error::DuplicateMappingKey { key, .. } => {
            value = key.as_deref().map(shown).unwrap_or_default();
            ("this field is given twice".to_owned(), "remove one".to_owned())
        }
        Error::SerdeMissingField { field, .. } => (format!("the field `{field}` is missing"), "add it".to_owned()),
        Error::SerdeInvalidType {
            unexpected, expected, ..
        } if unexpected == "unit value" => ("there is no value".to_owned(), format!("write {expected}")),
        Error::SerdeInvalidType {
            unexpected, expected, ..
        }
        | Error::SerdeInvalidValue {
            unexpected, expected, ..
        } => (format!("here is {unexpected}"), format!("write {expected}")),
        other => by_rule(other),
    };
    let position = error.location().and_then(position);
    // "?" is a key that could not be read as one, "." the document.
    let path = path.trim_end_matches(['?', '.']).to_owned();
    Problem {
        path,
        position,
        value,
        problem,
        remedy,
    }
}

/// Problems that have nothing of the document in their words.
fn by_rule(error: &Error) -> (String, String) {
    let (problem, remedy) = match error {
        Error::Unexpected {
            expected: "sequence start",
            ..
        } => (
            "this must be a list",
            "write `[a, b]`, or one `- item` per line; `[]` if there is none",
        ),
        Error::Unexpected {
            expected: "mapping start",
            ..
        } => (
            "this must be a mapping",
            "write `{field: value}`, or one `field: value` per line",
        ),
        Error::Unexpected {
            expected: "string scalar",
            ..
        } => ("this must be a single value", "write no list and no mapping"),
        Error::NullIntoString { .. } => ("there is no value", "write one, or remove the field"),
        Error::MultipleDocuments { .. } => ("a second document begins here", "keep one: remove the line `---`"),
        Error::Budget { breach, .. } if !matches!(breach, BudgetBreach::Depth { .. }) => TOO_MUCH,
        Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayStackDepthExceeded { .. } => TOO_MUCH,
        other => {
            let message = DefaultMessageFormatter.format_message(other).escape_debug().to_string();
            return (
                message,
                "check the indentation, brackets and quotes, here and in the line before".to_owned(),
            );
        }
    };
    (problem.to_owned(), remedy.to_owned())
}

/// The limits of [`options`] concern what aliases add.
const TOO_MUCH: (&str, &str) = (
    "the aliases up to here add more than a document may hold",
    "use none inside of what has an anchor itself",
);

fn did_you_mean(field: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    if known.is_empty() {
        return "remove it: no field is possible here".to_owned();
    }
    match Nearest::default().among(field, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known: {list}"),
        None => format!("known: {list}"),
    }
}

fn position(location: Location) -> Option<TextPosition> {
    let (line, column) = (location.line(), location.column());
    (location != Location::UNKNOWN).then_some(TextPosition { line, column })
}

/// The beginnings of the resources.
#[derive(Deserialize)]
struct Beginnings {
    node: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    workloads: Vec<Spanned<IgnoredAny>>,
    #[serde(default)]
    services: Vec<Spanned<IgnoredAny>>,
    #[serde(default)]
    authorization_policies: Vec<Spanned<IgnoredAny>>,
}

/// Gives each problem the position of the resource it is in.
pub(super) fn add_positions(text: &str, problems: &mut Problems) {
    let Ok(beginnings) = serde_saphyr::from_str_with_options::<Beginnings>(text, options(text)) else {
        return;
    };
    for problem in &mut problems.found {
        problem.position = beginnings
            .of(&problem.path)
            .and_then(|spanned| position(spanned.referenced));
    }
}

impl Beginnings {
    fn of(&self, path: &str) -> Option<&Spanned<IgnoredAny>> {
        let (section, rest) = path.split_once(['[', '.']).unwrap_or((path, ""));
        let index = || rest.split_once(']')?.0.parse::<usize>().ok();
        match section {
            "node" => self.node.as_ref(),
            "workloads" => self.workloads.get(index()?),
            "services" => self.services.get(index()?),
            "authorization_policies" => self.authorization_policies.get(index()?),
            _ => None,
        }
    }
}
