//! Header fields that are taken away, added or replaced (`HeaderValueOption`, `request_headers_to_remove`, …).

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderEdit {
    /// It is added, beside what is there (`APPEND_IF_EXISTS_OR_ADD`).
    Add(HeaderName, HeaderValue),
    /// It takes the place of what is there (`OVERWRITE_IF_EXISTS_OR_ADD`).
    Set(HeaderName, HeaderValue),
    /// It is added if there is none (`ADD_IF_ABSENT`).
    Default(HeaderName, HeaderValue),
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
    /// Does them.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for edit in &self.edits {
            match edit {
                HeaderEdit::Add(name, value) => {
                    headers.append(name.clone(), value.clone());
                }
                HeaderEdit::Set(name, value) => {
                    headers.insert(name.clone(), value.clone());
                }
                HeaderEdit::Default(name, value) => {
                    headers.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
    }
}

/// Whether `name` may be edited: what frames a message (RFC 9112, section 6; RFC 9113, section 8.2.2) and `Host`, for which there is a rewrite, may not.
pub(crate) fn is_editable(name: &HeaderName) -> bool {
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
