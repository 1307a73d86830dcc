//! What is wrong with a configuration, said to the person who wrote it.
//!
//! The one idea: every problem names **where** (the path in the document, and the line), **what** was written there,
//! **why** it can't be, and **what to write instead**. A file that is well formed is judged as a whole, so that it takes
//! one round to repair and not one per mistake.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a configuration was not taken. Nothing of it has been applied.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The text is not YAML, or has fields that don't exist; reading ended there.
    #[error("the configuration can't be read beyond this:\n{0}")]
    Malformed(Box<Problem>),
    /// The text is well formed, but can't mean what it says.
    #[error("{0}")]
    Invalid(Problems),
}

impl ConfigError {
    /// The problems one by one; none if the file was not readable at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Read { .. } => &[],
            Self::Malformed(problem) => std::slice::from_ref(problem),
            Self::Invalid(problems) => &problems.found,
        }
    }
}

/// One thing that is wrong. Displayed on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the document, for example `services[3].endpoints[0].workload`; empty for the document itself.
    pub path: String,
    /// Where in the text; of a problem in a workload, service or policy: where that begins.
    pub position: Option<TextPosition>,
    /// What was written there, shortened if long; empty if nothing was.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// A place in the text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextPosition {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(TextPosition { line, column }) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", on_one_line(&self.path))?;
        }
        if !self.value.is_empty() {
            write!(f, "{:?}: ", self.value)?;
        }
        write!(f, "{}; {}", on_one_line(&self.problem), on_one_line(&self.remedy))
    }
}

/// Words of the document end up in logs and terminals, where a line break or an escape sequence would lie.
fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// All that is wrong with a well-formed configuration, in the order of its sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub(crate) found: Vec<Problem>,
    pub(crate) left_out: usize,
}

impl Problems {
    /// More problems than anyone repairs by hand are counted, not kept: a generated file with one systematic mistake
    /// must not cost more memory than the mesh it describes.
    pub(crate) const MAX_KEPT: usize = 1000;

    pub(crate) fn push(&mut self, problem: Problem) {
        if self.is_full() {
            self.left_out += 1;
        } else {
            self.found.push(problem);
        }
    }

    /// Whether further problems are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= Self::MAX_KEPT
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found.len() + self.left_out {
            1 => write!(f, "the configuration has a problem:")?,
            count => write!(f, "the configuration has {count} problems:")?,
        }
        for problem in &self.found {
            write!(f, "\n{problem}")?;
        }
        if self.left_out > 0 {
            write!(f, "\nand {} more", self.left_out)?;
        }
        Ok(())
    }
}
