//! The commands' end of the admin server: they ask a running proxy, and show what it answers.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long the proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Headers of an answer that are looked at.
const MAX_HEADERS: usize = 32;

/// Why a proxy's answer cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The proxy could not be asked.
    #[error("no proxy answers at {address}: {source}; say where its admin server is with --admin")]
    NoAnswer {
        /// Where it was asked.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The proxy does not understand the question.
    #[error("{0}")]
    Refused(String),
    /// What answered is no proxy of ours.
    #[error("what answers at {0} is not the admin server of a proxy of this release")]
    Misunderstood(SocketAddr),
}

/// What the admin server at `address` says at `path`, which is JSON.
///
/// # Errors
/// When there is no such answer.
pub(crate) fn ask<T: DeserializeOwned>(address: SocketAddr, path: &str) -> Result<T, AskError> {
    let exchange = || -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source| AskError::NoAnswer { address, source })?;
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(&answer) {
        Ok(httparse::Status::Complete(length)) if head.code == Some(200) => {
            serde_json::from_slice(&answer[length..]).map_err(|_| AskError::Misunderstood(address))
        }
        Ok(httparse::Status::Complete(length)) if head.code == Some(400) => {
            let why = String::from_utf8_lossy(&answer[length..]);
            Err(AskError::Refused(why.trim_end().to_owned()))
        }
        _ => Err(AskError::Misunderstood(address)),
    }
}

/// Prints the list that the admin server at `address` has at `path`: as one JSON document, or as `text` says it.
///
/// # Errors
/// When it does not answer.
pub(crate) fn show(
    address: SocketAddr,
    path: &str,
    as_json: bool,
    text: impl FnOnce(&[Value]) -> String,
) -> Result<(), AskError> {
    let all: Vec<Value> = ask(address, path)?;
    if as_json {
        println!("{}", Value::Array(all));
    } else {
        print!("{}", text(&all));
    }
    Ok(())
}

/// The parts of a list; none, if it is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text, or what stands for none.
pub(crate) fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Rows under their titles, as a table whose columns are as wide as their widest cell, behind `margin`.
pub(crate) fn table<const COLUMNS: usize>(
    margin: &str,
    titles: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let rows: Vec<_> = [titles.map(str::to_owned)].into_iter().chain(rows).collect();
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{margin}{}", line.trim_end());
    }
    text
}
