//! Any text is either a configuration or an error that can be shown; nothing panics.

use std::sync::LazyLock;

use proptest::prelude::*;
use underpass_config::Config;

use super::COMPLETE;

/// One slip of the hand, or of a generator, somewhere in a document.
#[derive(Clone, Debug)]
enum Slip {
    Delete(usize, usize),
    Insert(usize, String),
    /// Copies a stretch to elsewhere.
    Copy(usize, usize, usize),
    SwapLines(usize, usize),
    /// Writes another value for a word.
    Replace(usize, &'static str),
}

const VALUES: [&str; 16] = [
    "",
    "0",
    "-1",
    "65536",
    "99999999999999999999",
    "~",
    "[]",
    "{}",
    "*here",
    "&here x",
    "0s",
    "::",
    "0.0.0.0",
    "\"*\"",
    "ä€",
    "\u{0}",
];

/// As many as there are, about.
const LINES: usize = 170;
const WORDS: usize = 900;

fn slip() -> impl Strategy<Value = Slip> {
    let place = || 0..COMPLETE.len();
    prop_oneof![
        (place(), 0..40usize).prop_map(|(at, length)| Slip::Delete(at, length)),
        (place(), "[-{}\\[\\]:,&*#'\" \t\nab0.*/]{1,4}").prop_map(|(at, text)| Slip::Insert(at, text)),
        (place(), 0..200usize, place()).prop_map(|(from, length, to)| Slip::Copy(from, length, to)),
        (0..LINES, 0..LINES).prop_map(|(one, other)| Slip::SwapLines(one, other)),
        (0..WORDS, prop::sample::select(&VALUES)).prop_map(|(word, value)| Slip::Replace(word, value)),
    ]
}

/// The nearest place at or before `at` where the text can be cut.
fn cut(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

impl Slip {
    fn apply(&self, text: &mut String) {
        match self {
            Self::Delete(at, length) => {
                let (from, to) = (cut(text, *at), cut(text, at + length));
                text.replace_range(from..to, "");
            }
            Self::Insert(at, inserted) => text.insert_str(cut(text, *at), inserted),
            Self::Copy(from, length, to) => {
                let copied = text[cut(text, *from)..cut(text, from + length)].to_owned();
                text.insert_str(cut(text, *to), &copied);
            }
            Self::SwapLines(one, other) => {
                let mut lines: Vec<&str> = text.lines().collect();
                let count = lines.len().max(1);
                if let (one, other) = (one % count, other % count)
                    && !lines.is_empty()
                {
                    lines.swap(one, other);
                }
                *text = lines.join("\n");
            }
            Self::Replace(index, value) => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
                let word = text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).nth(*index);
                let range = word.map(|word| {
                    let start = word.as_ptr() as usize - text.as_ptr() as usize;
                    start..start + word.len()
                });
                if let Some(range) = range {
                    text.replace_range(range, value);
                }
            }
        }
    }
}

static UNHARMED: LazyLock<Config> = LazyLock::new(|| Config::from_yaml(COMPLETE).unwrap());

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_document_never_panics(slips in prop::collection::vec(slip(), 1..4)) {
        let mut yaml = COMPLETE.to_owned();
        for slip in &slips {
            slip.apply(&mut yaml);
        }
        match Config::from_yaml(&yaml) {
            Ok(config) => {
                // What is accepted is whole: no reference leads nowhere, and it is what an update leads to.
                for workload in config.mesh.workloads() {
                    prop_assert!(workload.services.iter().all(|of| config.mesh.service(&of.service).is_some()));
                    prop_assert!(workload.authorization_policies.iter().all(|key| config.mesh.policy(key).is_some()));
                }
                let (updated, _) = UNHARMED.updated(&yaml).unwrap();
                prop_assert_eq!(&updated.node, &config.node);
                prop_assert_eq!(updated.mesh.workloads().count(), config.mesh.workloads().count());
                for workload in config.mesh.workloads() {
                    prop_assert_eq!(updated.mesh.workload(&workload.uid), Some(workload));
                }
            }
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                let lines = error.to_string().lines().count();
                prop_assert_eq!(lines, 1 + error.problems().len(), "one line for each problem: {}", error);
            }
        }
    }

    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC{0,200}") {
        if let Err(error) = Config::from_yaml(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 2);
        }
    }
}
