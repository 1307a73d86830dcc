//! Header fields that are taken away, added or replaced (`HeaderValueOption`, `request_headers_to_remove`, …).

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::operators::{Facts, Format};

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Which.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderText,
    /// What becomes of those that are there.
    pub action: AppendAction,
}

/// What becomes of the values that a field has (`HeaderAppendAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// It is added, beside what is there (`APPEND_IF_EXISTS_OR_ADD`).
    Add,
    /// It takes the place of what is there (`OVERWRITE_IF_EXISTS_OR_ADD`).
    Set,
    /// It is added if there is none (`ADD_IF_ABSENT`).
    Default,
    /// It takes the place of what is there, if there is something (`OVERWRITE_IF_EXISTS`).
    Replace,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderText {
    /// Always the same.
    Fixed(HeaderValue),
    /// What operators say of each request.
    Told(Format),
}

impl HeaderText {
    /// The value; nothing if operators have nothing to say (as in Envoy, where `keep_empty_value` is off).
    fn written(&self, edited: &HeaderMap, facts: &dyn Facts) -> Option<HeaderValue> {
        match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Told(format) => {
                let text = format.written(edited, facts);
                HeaderValue::from_bytes(&text).ok().filter(|value| !value.is_empty())
            }
        }
    }
}

/// Edits of one place of the configuration: what is removed goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields to remove.
    pub remove: Vec<HeaderName>,
    /// The others, in their order.
    pub edits: Vec<HeaderEdit>,
}

impl HeaderEdits {
    /// Does them. All see what was there when the removed fields were gone; what takes a place goes before what is added (as in Envoy).
    pub fn apply(&self, headers: &mut HeaderMap, facts: &dyn Facts) {
        for name in &self.remove {
            headers.remove(name);
        }
        if self.edits.is_empty() {
            return;
        }
        let is_due = |edit: &&HeaderEdit| match edit.action {
            AppendAction::Add | AppendAction::Set => true,
            AppendAction::Default => !headers.contains_key(&edit.name),
            AppendAction::Replace => headers.contains_key(&edit.name),
        };
        let due = self.edits.iter().filter(is_due);
        let written: Vec<_> = due
            .filter_map(|edit| Some((edit, edit.value.written(headers, facts)?)))
            .collect();
        let takes_place = |edit: &HeaderEdit| matches!(edit.action, AppendAction::Set | AppendAction::Replace);
        for (edit, value) in written.iter().filter(|(edit, _)| takes_place(edit)) {
            headers.insert(edit.name.clone(), value.clone());
        }
        for (edit, value) in written.iter().filter(|(edit, _)| !takes_place(edit)) {
            headers.append(edit.name.clone(), value.clone());
        }
    }
}

/// Whether `name` may be edited: what frames a message (RFC 9112, section 6; RFC 9113, section 8.2.2) and `Host`, for which there is a rewrite, may not.
pub fn is_editable(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    ![
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
        && !matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}
