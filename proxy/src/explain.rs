//! `underpass explain`: what would become of a connection or request, and why, as the proxy that is asked has it in force.

use std::net::SocketAddr;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::ask::{self, AskError, word};

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Question {
    /// `NAMESPACE/POD`, or an address.
    pub from: String,
    /// `HOST:PORT`, or an address and port.
    pub to: String,
    /// The request's method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// Its other header fields, as `NAME:VALUE`.
    pub headers: Vec<String>,
}

impl Question {
    fn query(&self) -> String {
        let field = |name: &str, value: &str| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let fixed = [
            ("from", &self.from),
            ("to", &self.to),
            ("method", &self.method),
            ("path", &self.path),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| field(name, value));
        let headers = self.headers.iter().map(|header| field("header", header));
        fixed.chain(headers).collect::<Vec<_>>().join("&")
    }
}

/// Asks the proxy at `admin`, and prints what it says.
///
/// # Errors
/// When it does not answer.
pub fn show(admin: SocketAddr, question: &Question, as_json: bool) -> Result<(), AskError> {
    ask::show(admin, &format!("/explain?{}", question.query()), as_json, text)
}

fn text(steps: &[Value]) -> String {
    let rows = steps
        .iter()
        .map(|step| ["step", "is", "why"].map(|field| word(&step[field])));
    ask::table("", ["STEP", "IS", "WHY"], rows)
}
