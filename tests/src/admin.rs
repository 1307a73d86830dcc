//! The proxy's admin address as an operator's tools see it: HTTP answers, and metrics parsed into something to ask.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::world::Host;

/// An answer slower than this is a hang.
const DEADLINE: Duration = Duration::from_secs(10);

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// Its header lines, as sent.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Sends one request without a body and reads the answer.
pub(crate) fn request(from: &Host, address: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    let mut stream = from.connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let text = read_to_close(&mut stream)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(broken)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    assert!(
        !chunked,
        "the admin address should send a Content-Length, it sent: {head}"
    );
    Ok(Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

fn read_to_close(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One sample of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; counts are exact up to 2^53.
    pub value: f64,
}

/// A scrape of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Parses the text exposition format. Panics on a line that is none: a scraper would refuse the whole scrape.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            samples: lines
                .map(|l| sample(l).unwrap_or_else(|| panic!("not a metric line: {l:?}")))
                .collect(),
        }
    }

    /// All samples of `name` that have all of `labels`.
    pub fn find<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(k, v)| sample.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The sum of all samples of `name` that have all of `labels`; zero when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let total: f64 = self.find(name, labels).map(|sample| sample.value).sum();
        assert!(total >= 0.0 && total.fract() == 0.0, "{name} is not a count: {total}");
        total as u64
    }

    /// All samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

/// `name{label="value",…} value [timestamp] [# exemplar]`
fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            // A label that appears twice makes a scraper refuse the line.
            if labels.insert(key.to_owned(), value).is_some() {
                return None;
            }
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The text up to the closing quote, unescaped, and what follows the quote.
pub(crate) fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_quotes_commas_and_braces_are_read() {
        let metrics = Metrics::parse("# HELP a b\na{x=\"1,}\\\"\",y=\"\"} 3 1700000000\na 4\nab 5\n# EOF\n");
        assert_eq!(metrics.sum("a", &[]), 7);
        assert_eq!(metrics.sum("a", &[("x", "1,}\"")]), 3);
        assert_eq!(metrics.sum("a", &[("y", "")]), 3);
    }

    #[test]
    #[should_panic(expected = "not a metric line")]
    fn a_label_that_appears_twice_is_refused() {
        Metrics::parse("a{x=\"1\",x=\"2\"} 3\n");
    }
}
