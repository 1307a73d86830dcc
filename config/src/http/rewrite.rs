//! How a route changes the path (`prefix_rewrite`, `regex_rewrite`, `path_rewrite`). The query stays.

use regex::Regex;

use super::{PathMatch, RouteMatch};

/// What takes the place of a match: texts and numbered groups (`\1`), `\0` being the whole match (RE2's rewrite).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Substitution(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Substitution {
    /// Reads `/v2/\1`, for a pattern with `groups` groups besides the whole.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, groups: usize) -> Result<Self, String> {
        let mut pieces = vec![];
        let mut plain = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                plain.push(c);
                continue;
            }
            match rest.next() {
                Some('\\') => plain.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    if group > groups {
                        return Err(format!("names group {group}, and the pattern has {groups}"));
                    }
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(Piece::Group(group));
                }
                _ => return Err("has a backslash that neither a digit nor a backslash follows".to_owned()),
            }
        }
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }

    /// `text` with each match of `pattern` replaced.
    pub fn apply(&self, pattern: &Regex, text: &str) -> String {
        let replaced = pattern.replace_all(text, |found: &regex::Captures<'_>| {
            let mut out = String::new();
            for piece in &self.0 {
                match piece {
                    Piece::Text(text) => out.push_str(text),
                    Piece::Group(group) => out.push_str(found.get(*group).map_or("", |m| m.as_str())),
                }
            }
            out
        });
        replaced.into_owned()
    }
}

/// How a route changes the path.
#[derive(Clone, Debug, Default)]
pub enum PathRewrite {
    /// Not at all.
    #[default]
    None,
    /// What the route's path match has matched is replaced: the prefix, or the whole path.
    Matched(String),
    /// Each match is replaced.
    Regex(Regex, Substitution),
    /// All of it is replaced.
    Whole(String),
}

impl PathRewrite {
    /// The new path, of one that `matched` has let through; none: it stays.
    pub fn apply(&self, matched: &RouteMatch, path: &str) -> Option<String> {
        match self {
            Self::None => None,
            Self::Whole(whole) => Some(whole.clone()),
            Self::Regex(pattern, substitution) => Some(substitution.apply(pattern, path)),
            Self::Matched(new) => {
                let length = match &matched.path {
                    PathMatch::Prefix(prefix) | PathMatch::Segments(prefix) => prefix.len(),
                    PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => path.len(),
                };
                let rest = path.get(length..).unwrap_or_default();
                Some(format!("{new}{rest}"))
            }
        }
    }
}
