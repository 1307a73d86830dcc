//! Templates of paths (`extensions.path.match.uri_template.v3.UriTemplateMatchConfig`): `/users/*/info`, `/files/**`.

use regex::Regex;

/// A template, compiled.
#[derive(Clone, Debug)]
pub struct PathTemplate(Regex);

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// It has no slash at its beginning.
    #[error("a template of paths begins with a slash")]
    Slash,
    /// A star is not the whole of a segment, or something with one follows `**`.
    #[error("`*` is one segment and `**` any number, behind which there is no other: `{0}` is neither")]
    Star(String),
    /// A character that no path has.
    #[error("`{0}` is not a segment of a path")]
    Segment(String),
    /// It is too long.
    #[error("the template is too long")]
    TooLong,
}

/// What a segment of a path may be made of (RFC 3986's `pchar`, as Envoy's `uri_template`; in a template, a star is an operator).
const IN_SEGMENT: &str = "a-zA-Z0-9\\-._~%!$&'()*+,;:@=";

/// Templates beyond this are no templates.
const LONGEST: usize = 2048;

impl PathTemplate {
    /// What `template` says: `*` is one segment, `**` any number of them.
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn new(template: &str) -> Result<Self, BadTemplate> {
        let rest = template.strip_prefix('/').ok_or(BadTemplate::Slash)?;
        if template.len() > LONGEST {
            return Err(BadTemplate::TooLong);
        }
        let segments: Vec<&str> = rest.split('/').collect();
        let mut pattern = String::from("^");
        let mut is_open = true;
        for segment in &segments {
            pattern.push('/');
            match *segment {
                "*" if is_open => pattern += &format!("[{IN_SEGMENT}]+"),
                "**" if is_open => {
                    is_open = false;
                    pattern += &format!("[{IN_SEGMENT}/]*");
                }
                _ if segment.contains('*') => return Err(BadTemplate::Star((*segment).to_owned())),
                _ if segment.bytes().all(is_in_segment) => pattern += &regex::escape(segment),
                _ => return Err(BadTemplate::Segment((*segment).to_owned())),
            }
        }
        pattern.push('$');
        Regex::new(&pattern).map(Self).map_err(|_| BadTemplate::TooLong)
    }

    /// Whether a path, without its query, is one of them.
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

fn is_in_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}
