//! Edits of header fields: `{set: {x-a: b}, add: {…}, default: {…}, remove: [x-c]}`.

use std::collections::BTreeMap;

use http::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use crate::http::{HeaderEdit, HeaderEdits};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EditsShape<'a> {
    #[serde(borrow)]
    set: BTreeMap<Scalar<'a>, Scalar<'a>>,
    add: BTreeMap<Scalar<'a>, Scalar<'a>>,
    default: BTreeMap<Scalar<'a>, Scalar<'a>>,
    remove: Vec<Scalar<'a>>,
}

impl EditsShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        for (index, name) in self.remove.iter().enumerate() {
            let remove = path.field("remove");
            edits.remove.extend(editable(remove.item(index), name, reading));
        }
        type Kind = fn(HeaderName, HeaderValue) -> HeaderEdit;
        let kinds: [(&'static str, _, Kind); 3] = [
            ("set", &self.set, HeaderEdit::Set),
            ("add", &self.add, HeaderEdit::Add),
            ("default", &self.default, HeaderEdit::Default),
        ];
        for (field, fields, edit) in kinds {
            let path = path.field(field);
            for (name, value) in fields {
                let path = path.key(name);
                let name = editable(path, name, reading);
                let value = header_value(path, value, reading);
                if let (Some(name), Some(value)) = (name, value) {
                    edits.edits.push(edit(name, value));
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

fn editable(path: Path<'_>, name: &str, reading: &mut Reading) -> Option<HeaderName> {
    let parsed = header_name(path, name, reading)?;
    if !crate::http::is_editable(&parsed) {
        let remedy = "remove it; the host is changed by `host_rewrite`";
        reading.report(path, name, "frames the message, and is the proxy's own", remedy);
        return None;
    }
    Some(parsed)
}

/// The value of a header field, as it is: Envoy's `%COMMAND%`s are not known here.
pub(super) fn header_value(path: Path<'_>, value: &str, reading: &mut Reading) -> Option<HeaderValue> {
    if value.contains('%') {
        let remedy = "write a value without `%`";
        reading.report(
            path,
            value,
            "has a command operator, which is not supported yet",
            remedy,
        );
        return None;
    }
    let parsed = HeaderValue::try_from(value).ok();
    if parsed.is_none() {
        let remedy = "use visible characters and blanks (RFC 9110, section 5.5)";
        reading.report(path, value, "is not the value of a header field", remedy);
    }
    parsed
}
