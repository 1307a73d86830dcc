//! The format of a time: `%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%`.
//!
//! The words are strftime's, as far as absl's `FormatTime`, which Envoy has them by, and chrono mean the same by them, with Envoy's `%3f`, `%6f` and `%9f` for
//! fractions of a second, and absl's `%E3S`. Times are UTC.

use std::fmt::Write as _;
use std::time::SystemTime;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Vec<Item<'static>>);

/// Conversions that both mean alike.
const KNOWN: &str = "aAbBcCdDeFgGhHIjkmMprRsSTuUVwWxXyYzZ%";

/// absl's and Envoy's words for fractions, and chrono's.
const FRACTIONS: [(&str, &str); 7] = [
    ("E3S", "%S%.3f"),
    ("E6S", "%S%.6f"),
    ("E9S", "%S%.9f"),
    ("3f", "%3f"),
    ("6f", "%6f"),
    ("9f", "%9f"),
    ("f", "%9f"),
];

impl TimeFormat {
    /// Reads one; none if it has a conversion that is not supported, or a line break.
    pub fn parse(text: &str) -> Option<Self> {
        let mut translated = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            translated.push_str(before);
            let fraction = FRACTIONS.iter().find(|(word, _)| after.starts_with(word));
            if let Some((word, meant)) = fraction {
                translated.push_str(meant);
                rest = &after[word.len()..];
                continue;
            }
            let conversion = after.chars().next().filter(|&letter| KNOWN.contains(letter))?;
            translated.push('%');
            translated.push(conversion);
            rest = &after[conversion.len_utf8()..];
        }
        translated.push_str(rest);
        if translated.contains(['\n', '\r']) {
            return None;
        }
        StrftimeItems::new(&translated).parse_to_owned().ok().map(Self)
    }

    /// Writes a time.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let mut text = String::new();
        // A format that was parsed can be written.
        let _ = write!(text, "{}", DateTime::<Utc>::from(time).format_with_items(self.0.iter()));
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_absl_writes_them() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_003, 7_089_001);
        for (format, expected) in [
            ("%Y-%m-%dT%H:%M:%S.%3fZ", "2023-11-14T22:13:23.007Z"),
            ("%Y/%m/%dT%H:%M:%S%z %s", "2023/11/14T22:13:23+0000 1700000003"),
            (
                "%s.%3f %s.%6f %s.%9f",
                "1700000003.007 1700000003.007089 1700000003.007089001",
            ),
            ("%f", "007089001"),
            ("%E3S|%E6S|%E9S", "23.007|23.007089|23.007089001"),
            (
                "%a %A %b %B %e %j %y %I%p %%",
                "Tue Tuesday Nov November 14 318 23 10PM %",
            ),
            ("%D %F %T %R", "11/14/23 2023-11-14 22:13:23 22:13"),
            ("no time", "no time"),
        ] {
            let mut out = Vec::new();
            TimeFormat::parse(format).unwrap().write(time, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{format}");
        }
        for format in ["%", "%Q", "%+", "%.3f", "%:z", "%4f", "%n", "a\nb", "%é"] {
            assert_eq!(TimeFormat::parse(format), None, "{format}");
        }
    }
}
