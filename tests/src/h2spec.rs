//! h2spec, which tries a server of HTTP/2 by what RFC 9113 says.

use std::path::PathBuf;

use crate::requirement::built_by;

/// Where it is, if it is there.
pub fn program() -> Option<PathBuf> {
    built_by("h2spec-setup.sh")
}
