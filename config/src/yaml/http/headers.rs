//! Edits of header fields: `{set: {x-a: b}, add: {…}, default: {…}, replace: {…}, remove: [x-c]}`.

use std::collections::BTreeMap;

use http::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use crate::http::{AppendAction, Format, HeaderEdit, HeaderEdits, HeaderText, Stage};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EditsShape<'a> {
    #[serde(borrow)]
    set: BTreeMap<Scalar<'a>, Scalar<'a>>,
    add: BTreeMap<Scalar<'a>, Scalar<'a>>,
    default: BTreeMap<Scalar<'a>, Scalar<'a>>,
    replace: BTreeMap<Scalar<'a>, Scalar<'a>>,
    remove: Vec<Scalar<'a>>,
}

impl EditsShape<'_> {
    /// Those of requests.
    pub(super) fn of_requests(&self, path: Path<'_>, reading: &mut Reading) -> HeaderEdits {
        self.compile(path, Stage::Request, reading)
    }

    /// Those of responses.
    pub(super) fn of_responses(&self, path: Path<'_>, reading: &mut Reading) -> HeaderEdits {
        self.compile(path, Stage::Response, reading)
    }

    fn compile(&self, path: Path<'_>, stage: Stage, reading: &mut Reading) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        for (index, name) in self.remove.iter().enumerate() {
            let remove = path.field("remove");
            edits.remove.extend(editable(remove.item(index), name, reading));
        }
        let kinds: [(&'static str, _, AppendAction); 4] = [
            ("set", &self.set, AppendAction::Set),
            ("add", &self.add, AppendAction::Add),
            ("default", &self.default, AppendAction::Default),
            ("replace", &self.replace, AppendAction::Replace),
        ];
        for (field, fields, action) in kinds {
            let path = path.field(field);
            for (name, value) in fields {
                let path = path.key(name);
                let name = editable(path, name, reading);
                let value = header_text(path, value, stage, reading);
                if let (Some(name), Some(value)) = (name, value) {
                    edits.edits.push(HeaderEdit { name, value, action });
                }
            }
        }
        edits
    }
}

/// The name of a header field.
pub(super) fn header_name(path: Path<'_>, name: &str, reading: &mut Reading) -> Option<HeaderName> {
    let parsed = HeaderName::try_from(name).ok();
    if parsed.is_none() {
        let remedy = "use letters, digits and hyphens (RFC 9110, section 5.1)";
        reading.report(path, name, "is not the name of a header field", remedy);
    }
    parsed
}

/// The name of one that may be edited.
pub(super) fn editable(path: Path<'_>, name: &str, reading: &mut Reading) -> Option<HeaderName> {
    let parsed = header_name(path, name, reading)?;
    if !crate::http::is_editable(&parsed) {
        let remedy = "remove it; the host is changed by `host_rewrite`";
        reading.report(path, name, "frames the message, and is the proxy's own", remedy);
        return None;
    }
    Some(parsed)
}

/// A text in which there may be operators.
pub(super) fn format(path: Path<'_>, value: &str, stage: Stage, reading: &mut Reading) -> Option<Format> {
    match Format::parse(value, stage) {
        Ok(format) => Some(format),
        Err(error) => {
            reading.report(path, value, error.to_string(), error.remedy(stage));
            None
        }
    }
}

/// The value of a header field, in which there may be operators.
pub(super) fn header_text(path: Path<'_>, value: &str, stage: Stage, reading: &mut Reading) -> Option<HeaderText> {
    let format = format(path, value, stage, reading)?;
    match format.fixed() {
        Some(text) => header_value(path, text, reading).map(HeaderText::Fixed),
        None => {
            // What stands beside the operators has to be fit for a header; a tab is all that a control character may be.
            header_value(path, value, reading)?;
            Some(HeaderText::Told(format))
        }
    }
}

/// The value of a header field, as it is.
pub(super) fn header_value(path: Path<'_>, value: &str, reading: &mut Reading) -> Option<HeaderValue> {
    let parsed = HeaderValue::try_from(value).ok();
    if parsed.is_none() {
        let remedy = "use visible characters and blanks (RFC 9110, section 5.5)";
        reading.report(path, value, "is not the value of a header field", remedy);
    }
    parsed
}
