//! The command that asks a running proxy for its connections: `flows`.

use std::net::SocketAddr;

use serde_json::Value;

use crate::ask::{self, AskError, table, word};

/// Prints the open connections of the proxy whose admin server is at `address`, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), AskError> {
    ask::show(address, "/connections", as_json, text)
}

const COLUMNS: [&str; 7] = ["FROM", "TO", "TIER", "SENT", "RECEIVED", "IN KERNEL", "NOTE"];

fn text(flows: &[Value]) -> String {
    if flows.is_empty() {
        return "no connections are open\n".to_owned();
    }
    table("", COLUMNS, flows.iter().map(row))
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
        let text = text(&[kernel, relay]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words[1][..5],
            ["shop/web", "10.0.0.1:1", "10.0.0.2:80", "kernel", "100"]
        );
        assert_eq!(words[1][6..], ["75.0", "%", "parked:", "received"]);
        assert_eq!(words[2][2..], ["relay", "0", "0", "0.0", "%", "blocking"]);
        assert_eq!(super::text(&[]), "no connections are open\n");
    }
}
