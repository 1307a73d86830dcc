//! Turning texts of the document into values, and keeping account of those that are none.
//!
//! Every method of [`Reading`] takes the [`Path`] of what it reads. What can't be read is reported and stood in for by
//! something harmless, so that reading goes on; a document with a report is never used.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::nearest::Nearest;
use super::scalar::Scalar;
use crate::error::{Problem, Problems};
use crate::settings::is_hostname;
use crate::{ByteSize, Interner, Text, WorkloadUid};

/// Where in the document a value stands. Made on the stack on the way down; it costs nothing until it is displayed.
#[derive(Clone, Copy)]
pub(crate) enum Path<'p> {
    /// A top-level field.
    Section(&'static str),
    /// A field of a mapping.
    Field(&'p Path<'p>, &'static str),
    /// An item of a list, counted from 0.
    Item(&'p Path<'p>, usize),
    /// A key that the author chose.
    Key(&'p Path<'p>, &'p str),
}

impl Path<'_> {
    pub(super) fn field<'p>(&'p self, name: &'static str) -> Path<'p> {
        Path::Field(self, name)
    }

    pub(super) fn item(&self, index: usize) -> Path<'_> {
        Path::Item(self, index)
    }

    pub(super) fn key<'p>(&'p self, key: &'p str) -> Path<'p> {
        Path::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Section(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
        }
    }
}

/// State of compiling one document.
#[derive(Default)]
pub(crate) struct Reading {
    pub(super) texts: Interner,
    pub(crate) problems: Problems,
    nearest: Nearest,
}

/// A choice of two.
pub(super) const YES_OR_NO: [(&str, bool); 2] = [("true", true), ("false", false)];

/// Longest value that is repeated in a message, in characters.
const SHOWN: usize = 80;

/// `value`, shortened if it is long.
pub(super) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        None => value.to_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}

impl Reading {
    /// Reports a problem.
    pub(crate) fn report(
        &mut self,
        path: Path<'_>,
        value: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            path: path.to_string(),
            position: None,
            value: shown(value),
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    /// What `name` may have been meant to be. Not asked for problems that are only counted.
    pub(super) fn nearest<'k>(&mut self, name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
        if self.problems.is_full() {
            None
        } else {
            self.nearest.among(name, known)
        }
    }

    /// Any text, shared with its equals.
    pub(super) fn text(&mut self, value: &str) -> Text {
        self.texts.intern(value)
    }

    /// The text, or else `default`.
    pub(super) fn text_or(&mut self, value: Option<&Scalar<'_>>, default: &Text) -> Text {
        value.map_or_else(|| default.clone(), |value| self.texts.intern(value))
    }

    /// A text that may not be empty, or else `default`.
    pub(super) fn nonempty_or(&mut self, path: Path<'_>, value: Option<&Scalar<'_>>, default: &Text) -> Text {
        if value.is_some_and(|value| value.is_empty()) {
            self.report(path, "", "is empty", format!("remove it for the default, `{default}`"));
        }
        self.text_or(value, default)
    }

    /// The text or else nothing.
    pub(super) fn text_or_empty(&mut self, value: Option<&Scalar<'_>>) -> Text {
        self.texts.intern(value.map_or("", |value| value))
    }

    /// A name that becomes part of keys and identities. A star is refused because it would be taken for a pattern.
    pub(crate) fn name(&mut self, path: Path<'_>, value: &str) -> Text {
        if value.is_empty() {
            self.report(path, value, "is empty", "give it a name");
        } else if value.contains(|c: char| c == '/' || c == '*' || c.is_whitespace() || c.is_control()) {
            self.report(
                path,
                value,
                "is not a name",
                "use no slashes, stars, blanks or control characters",
            );
        }
        self.texts.intern(value)
    }

    /// A name, or else `default`.
    pub(super) fn name_or(&mut self, path: Path<'_>, value: Option<&Scalar<'_>>, default: &str) -> Text {
        match value {
            Some(value) => self.name(path, value),
            None => self.texts.intern(default),
        }
    }

    /// A workload's uid: any text without blanks.
    pub(super) fn uid(&mut self, path: Path<'_>, value: &str) -> WorkloadUid {
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.report(
                path,
                value,
                "is not a uid",
                "use a text without blanks, or leave it out",
            );
        }
        WorkloadUid::new(value)
    }

    /// A host name, in lower case and without the root's dot, or else nothing.
    pub(super) fn hostname(&mut self, path: Path<'_>, value: Option<&Scalar<'_>>) -> Option<Text> {
        let value = value?;
        if !is_hostname(value) {
            self.report(
                path,
                value,
                "is not a host name",
                "write for example web.shop.svc.cluster.local",
            );
        }
        Some(
            self.texts
                .intern(&value.strip_suffix('.').unwrap_or(value).to_ascii_lowercase()),
        )
    }

    /// The path of a file or folder, from the root on: the agent's and the proxy's working directories may differ, so that
    /// a relative one would name two.
    pub(super) fn absolute(&mut self, path: Path<'_>, value: &str) -> Option<PathBuf> {
        if !value.starts_with('/') {
            let remedy = "write the whole path, from `/` on";
            self.report(path, value, "is not an absolute path", remedy);
            return None;
        }
        Some(value.into())
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        path: Path<'_>,
        value: Option<&Scalar<'_>>,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let value = value?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == &**value) {
            return Some(*meaning);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let remedy = match self.nearest(value, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? known: {}", known.join(", ")),
            None => format!("write one of: {}", known.join(", ")),
        };
        self.report(path, value, "is not a known value", remedy);
        None
    }

    /// A whole number in a range.
    pub(super) fn count(&mut self, path: Path<'_>, value: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = digits(value).filter(|number| range.contains(number));
        if number.is_none() {
            let remedy = format!("write a whole number from {} to {}", range.start(), range.end());
            self.report(path, value, "is not a valid number here", remedy);
        }
        number
    }

    /// A number of bytes, or else `default`.
    pub(super) fn bytes(&mut self, path: Path<'_>, value: Option<&Scalar<'_>>, default: ByteSize) -> ByteSize {
        let Some(value) = value else { return default };
        value.parse().unwrap_or_else(|error| {
            let remedy = "write a number with a unit, for example 64KiB or 1MiB, below 4GiB";
            self.report(path, value, format!("{error}"), remedy);
            default
        })
    }

    /// A port, 1 to 65535.
    pub(super) fn port(&mut self, path: Path<'_>, value: &str) -> Option<u16> {
        let port = digits(value).filter(|port| *port != 0);
        if port.is_none() {
            self.report(path, value, "is not a port", "write a number from 1 to 65535");
        }
        port
    }

    /// An IP address of one host; an IPv4-mapped one is its IPv4 address.
    pub(crate) fn address(&mut self, path: Path<'_>, value: &str) -> Option<IpAddr> {
        let Ok(address) = value.parse::<IpAddr>() else {
            let remedy = "write an IPv4 or IPv6 address without port or prefix length";
            self.report(path, value, "is not an IP address", remedy);
            return None;
        };
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            self.report(
                path,
                value,
                "is not the address of one host",
                "write the address that connections go to",
            );
            return None;
        }
        Some(address)
    }

    /// An IP address and a port, to listen on.
    pub(super) fn socket_address(&mut self, path: Path<'_>, value: &str) -> Option<SocketAddr> {
        let address = value.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        if address.is_none() {
            let remedy = "write for example 127.0.0.1:15001 or \"[::1]:15001\", with a port from 1 to 65535";
            self.report(path, value, "is not an address with a port", remedy);
        }
        address
    }

    /// A duration that is not zero, or else `default`.
    pub(super) fn duration(&mut self, path: Path<'_>, value: Option<&Scalar<'_>>, default: Duration) -> Duration {
        let duration = self.duration_or_zero(path, value, default);
        if duration.is_zero() {
            let value = value.map_or("", |value| value);
            self.report(
                path,
                value,
                "is no time at all",
                "write a duration above zero, for example 5s",
            );
        }
        duration
    }

    /// A duration, or else `default`.
    pub(super) fn duration_or_zero(
        &mut self,
        path: Path<'_>,
        value: Option<&Scalar<'_>>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        match humantime::parse_duration(value) {
            Ok(duration) if duration <= LONGEST => return duration,
            Ok(_) => self.report(path, value, "is too long", "write at most 1year"),
            Err(_) => {
                self.report(
                    path,
                    value,
                    "is not a duration",
                    "write a number with a unit, for example 200ms, 5s, 1h",
                );
            }
        }
        default
    }
}

/// humantime's year. Deadlines are computed by adding to the clock, which must not overflow.
const LONGEST: Duration = Duration::from_secs(31_557_600);

/// A number in plain digits: `from_str` alone would take a plus sign.
fn digits<N: std::str::FromStr>(value: &str) -> Option<N> {
    Some(value)
        .filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|value| value.parse().ok())
}
