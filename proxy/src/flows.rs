//! The command that asks a running proxy for its connections: `flows`.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long the proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Headers of an answer that are looked at.
const MAX_HEADERS: usize = 32;

/// Why the connections could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// The proxy could not be asked.
    #[error("no proxy answers at {address}: {source}; say where its admin server is with --admin")]
    NoAnswer {
        /// Where it was asked.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What answered is no proxy of ours.
    #[error("what answers at {0} is not the admin server of a proxy of this release")]
    Misunderstood(SocketAddr),
}

/// Prints the open connections of the proxy whose admin server is at `address`, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), FlowsError> {
    let answer = get(address, "/connections")?;
    let flows: Vec<Value> = serde_json::from_slice(&answer).map_err(|_| FlowsError::Misunderstood(address))?;
    if as_json {
        println!("{}", Value::Array(flows));
    } else {
        print!("{}", table(&flows));
    }
    Ok(())
}

fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>, FlowsError> {
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
    let mut answer = exchange().map_err(|source| FlowsError::NoAnswer { address, source })?;
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(&answer) {
        Ok(httparse::Status::Complete(length)) if head.code == Some(200) => Ok(answer.split_off(length)),
        _ => Err(FlowsError::Misunderstood(address)),
    }
}

const COLUMNS: [&str; 7] = ["FROM", "TO", "TIER", "SENT", "RECEIVED", "IN KERNEL", "NOTE"];

fn table(flows: &[Value]) -> String {
    if flows.is_empty() {
        return "no connections are open\n".to_owned();
    }
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(flows.iter().map(row));
    let widths: [usize; COLUMNS.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn row(flow: &Value) -> [String; COLUMNS.len()] {
    let number = |key: &str| flow[key].as_u64().unwrap_or(0);
    let all = number("sent_bytes") + number("received_bytes");
    let by_kernel = number("kernel_sent_bytes") + number("kernel_received_bytes");
    let share = if all == 0 {
        0.0
    } else {
        100.0 * by_kernel as f64 / all as f64
    };
    [
        end(flow, "src"),
        end(flow, "dst"),
        word(&flow["tier"]),
        number("sent_bytes").to_string(),
        number("received_bytes").to_string(),
        format!("{share:.1} %"),
        note(flow),
    ]
}

/// The workload and the address of one end.
fn end(flow: &Value, which: &str) -> String {
    let address = word(&flow[format!("{which}_addr")]);
    match (&flow[format!("{which}_namespace")], &flow[format!("{which}_workload")]) {
        (Value::String(namespace), Value::String(name)) => format!("{namespace}/{name} {address}"),
        _ => address,
    }
}

/// Why it is not in the kernel; or else who waits there.
fn note(flow: &Value) -> String {
    if let Value::String(why) = &flow["why_not"] {
        return why.clone();
    }
    let waits = |direction: &&str| flow["kernel"][*direction]["parked"] == true;
    let waiting: Vec<&str> = ["sent", "received"].into_iter().filter(waits).collect();
    match waiting.is_empty() {
        true => String::new(),
        false => format!("parked: {}", waiting.join(", ")),
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_where_a_flow_is_or_why_it_is_not_there() {
        let kernel = json!({
            "src_addr": "10.0.0.1:1", "src_namespace": "shop", "src_workload": "web", "dst_addr": "10.0.0.2:80",
            "tier": "kernel", "why_not": null, "sent_bytes": 100, "received_bytes": 300,
            "kernel_sent_bytes": 100, "kernel_received_bytes": 200,
            "kernel": {"sent": {"parked": false}, "received": {"parked": true}},
        });
        let relay = json!({
            "src_addr": "10.0.0.3:1", "dst_addr": "10.0.0.2:80", "tier": "relay", "why_not": "blocking",
            "sent_bytes": 0, "received_bytes": 0, "kernel": null,
        });
        let text = table(&[kernel, relay]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words[1][..5],
            ["shop/web", "10.0.0.1:1", "10.0.0.2:80", "kernel", "100"]
        );
        assert_eq!(words[1][6..], ["75.0", "%", "parked:", "received"]);
        assert_eq!(words[2][2..], ["relay", "0", "0", "0.0", "%", "blocking"]);
        assert_eq!(table(&[]), "no connections are open\n");
    }
}
