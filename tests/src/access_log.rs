//! The proxy's access log, as a log shipper sees it: a file that grows by whole lines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::conversation::Finish;

/// One connection's line.
#[derive(Clone, Debug)]
pub struct AccessLine {
    /// The line as written.
    pub text: String,
    fields: HashMap<String, String>,
}

impl AccessLine {
    /// Parses a line of either format. Panics on a line that is neither.
    pub(crate) fn parse(text: &str) -> Self {
        let fields = if text.starts_with('{') {
            json_fields(text)
        } else {
            text_fields(text)
        };
        Self {
            text: text.to_owned(),
            fields,
        }
    }

    /// The value of `key`. Panics when the line has none.
    #[track_caller]
    pub fn field(&self, key: &str) -> &str {
        self.fields
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in the access log line: {}", self.text))
    }

    /// The value of `key` as a number.
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        self.field(key)
            .parse()
            .unwrap_or_else(|_| panic!("{key} is not a number: {}", self.text))
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Panics unless it closed for this reason with this response flag.
    #[track_caller]
    pub fn assert_reason(&self, reason: &str, flags: &str) {
        let seen = (self.field("reason"), self.field("response_flags"));
        assert_eq!(seen, (reason, flags), "reason and response flags of: {}", self.text);
    }

    /// Panics unless it closed as a conversation that ended like this does.
    #[track_caller]
    pub fn assert_ends(&self, finish: Finish) {
        match finish {
            Finish::InOrder => self.assert_reason("completed", "-"),
            Finish::ClientReset => self.assert_reason("downstream_reset", "DC"),
            Finish::ServerReset => self.assert_reason("upstream_reset", "UC"),
            Finish::Abandoned => {
                let reason = self.field("reason");
                let possible = ["completed", "downstream_reset", "upstream_reset"];
                assert!(possible.contains(&reason), "{}", self.text);
            }
        }
    }
}

/// `TIME access key=value key="a value with spaces" …`
fn text_fields(text: &str) -> HashMap<String, String> {
    let broken = || -> ! { panic!("not an access log line: {text:?}") };
    let (_, mut rest) = text.split_once(" access ").unwrap_or_else(|| broken());
    let mut fields = HashMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').unwrap_or_else(|| broken());
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => crate::admin::quoted(quoted).unwrap_or_else(|| broken()),
            None => {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        fields.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    fields
}

fn json_fields(text: &str) -> HashMap<String, String> {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {text}"));
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    object.iter().map(|(key, value)| (key.clone(), plain(value))).collect()
}

/// A reader of a growing log.
pub(crate) struct Tail {
    path: PathBuf,
    read: u64,
    partial: String,
    lines: Vec<AccessLine>,
}

impl Tail {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read: 0,
            partial: String::new(),
            lines: Vec::new(),
        }
    }

    /// All lines so far that nobody has taken.
    pub(crate) fn lines(&mut self) -> &mut Vec<AccessLine> {
        self.read_on();
        &mut self.lines
    }

    /// Takes the first line of a connection from `source` that `is_it`.
    pub(crate) fn take(&mut self, source: SocketAddr, is_it: impl Fn(&AccessLine) -> bool) -> Option<AccessLine> {
        let source = source.to_string();
        let lines = self.lines();
        let position = lines
            .iter()
            .position(|line| line.fields.get("src.addr") == Some(&source) && is_it(line))?;
        Some(lines.remove(position))
    }

    fn read_on(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.read)).expect("seek in the access log");
        self.read += file.read_to_string(&mut text).expect("read the access log") as u64;
        self.partial.push_str(&text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            self.lines.push(AccessLine::parse(line.trim_end()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let text = AccessLine::parse(r#"2026-01-01T00:00:00Z access a=1 b.c=- d="two \"words\"" e=x"#);
        let json = AccessLine::parse(r#"{"a":1,"b.c":"-","d":"two \"words\"","e":"x"}"#);
        assert_eq!(text.fields, json.fields);
        assert_eq!((text.number("a"), text.field("d")), (1, "two \"words\""));
    }
}
