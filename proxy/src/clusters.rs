//! The command that asks a running proxy where requests of HTTP can go, and how that is: `clusters`.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::ask::{self, AskError, list, table, word};

/// Prints the clusters of the proxy whose admin server is at `address`, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), AskError> {
    ask::show(address, "/clusters", as_json, text)
}

const COLUMNS: [&str; 8] = [
    "ENDPOINT", "HEALTH", "WEIGHT", "PRIORITY", "REQUESTS", "IDLE", "HTTP/2", "NOTE",
];

fn text(clusters: &[Value]) -> String {
    if clusters.is_empty() {
        return "there are no clusters of HTTP\n".to_owned();
    }
    let mut text = String::new();
    for one in clusters {
        text += &format!(
            "{}: {}, {}, {}\n",
            word(&one["name"]),
            word(&one["protocol"]),
            word(&one["discovery"]),
            word(&one["balancing"])
        );
        text += &format!("  {}\n", limits(&one["limits"]));
        if let Some(line) = priorities(list(&one["priorities"])) {
            text += &format!("  {line}\n");
        }
        if let Some(line) = outliers(&one["outliers"]) {
            text += &format!("  {line}\n");
        }
        let endpoints = list(&one["endpoints"]);
        if endpoints.is_empty() {
            text += "  no endpoints\n";
            continue;
        }
        text += &table("  ", COLUMNS, endpoints.iter().map(row));
    }
    text
}

/// How much is used of what may be.
fn limits(limits: &Value) -> String {
    let of = |name: &str, key: &str| format!("{name} {}/{}", limits[key]["used"], limits[key]["limit"]);
    let mut line = [
        of("connections", "connections"),
        of("pending", "pending_requests"),
        of("requests", "requests"),
        of("retries", "retries"),
    ]
    .join(", ");
    let budget = &limits["retries"]["budget"];
    if !budget.is_null() {
        line += &format!(" (budget {} %, at least {})", budget["percent"], budget["minimum"]);
    }
    line
}

/// What each gets, where there are several.
fn priorities(priorities: &[Value]) -> Option<String> {
    let is_plain = priorities.len() < 2 && priorities.iter().all(|one| one["panic"] != true);
    let shares = priorities.iter().map(|one| {
        let panic = if one["panic"] == true { " in panic" } else { "" };
        format!("{}: {} %{panic}", one["priority"], one["percent"])
    });
    (!is_plain).then(|| format!("priorities {}", shares.collect::<Vec<_>>().join(", ")))
}

fn outliers(outliers: &Value) -> Option<String> {
    let found = outliers.as_object()?.get("found")?.as_object()?;
    let mut line = format!("ejected {}", outliers["ejected"]);
    for (kind, counts) in found {
        line += &format!(", {kind} {} (enforced {})", counts["detected"], counts["enforced"]);
    }
    if outliers["overflowed"].as_u64().is_some_and(|count| count > 0) {
        line += &format!(", not ejected for the limit {}", outliers["overflowed"]);
    }
    Some(line)
}

fn row(endpoint: &Value) -> [String; COLUMNS.len()] {
    let connections = &endpoint["connections"];
    let address = word(&endpoint["address"]);
    [
        match endpoint["host"].as_str() {
            Some(host) => format!("{host} {address}"),
            None => address,
        },
        word(&endpoint["health"]),
        endpoint["weight"].to_string(),
        endpoint["priority"].to_string(),
        endpoint["requests"].to_string(),
        connections["idle"].to_string(),
        format!("{} ({} streams)", connections["http2"], connections["http2_streams"]),
        note(endpoint),
    ]
}

fn note(endpoint: &Value) -> String {
    let standing = &endpoint["outliers"];
    let mut notes = Vec::new();
    if let Some(left) = standing["ejection_left_ms"].as_u64() {
        // To a second: it changes while it is read.
        let left = Duration::from_secs(left.div_ceil(1000));
        notes.push(format!("back in {}", humantime::format_duration(left)));
    }
    if standing["ejections"].as_u64().is_some_and(|count| count > 0) {
        notes.push(format!("ejected {} times", standing["ejections"]));
    }
    for (key, name) in [
        ("consecutive_5xx", "5xx"),
        ("consecutive_gateway_failures", "gateway failures"),
        ("consecutive_local_origin_failures", "failures on the way"),
    ] {
        if standing[key].as_u64().is_some_and(|count| count > 0) {
            notes.push(format!("{} {name} in a row", standing[key]));
        }
    }
    if endpoint["connections"]["waiting"]
        .as_u64()
        .is_some_and(|count| count > 0)
    {
        notes.push(format!("{} wait", endpoint["connections"]["waiting"]));
    }
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_say_what_is_used_and_who_is_ejected_for_how_long() {
        let connections = json!({"idle": 2, "http2": 1, "http2_streams": 3, "waiting": 0});
        let endpoint = json!({"address": "10.0.0.1:80", "host": null, "health": "ejected", "weight": 1, "priority": 0, "requests": 4,
            "connections": connections, "outliers": {"ejections": 2, "ejection_left_ms": 1500, "consecutive_5xx": 3}});
        let clusters = [
            json!({"name": "web", "protocol": "http1", "discovery": "static", "balancing": "random",
                "limits": {"connections": {"used": 1, "limit": 9}, "pending_requests": {"used": 0, "limit": 9}, "requests": {"used": 4, "limit": 9},
                    "retries": {"used": 0, "limit": 3, "budget": {"percent": 20, "minimum": 3}}},
                "priorities": [{"priority": 0, "percent": 100, "panic": true}],
                "outliers": {"ejected": 1, "overflowed": 0, "found": {"CONSECUTIVE_5XX": {"detected": 2, "enforced": 2}}},
                "endpoints": [endpoint]}),
        ];
        let text = text(&clusters);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "web: http1, static, random");
        assert_eq!(
            lines[1],
            "  connections 1/9, pending 0/9, requests 4/9, retries 0/3 (budget 20 %, at least 3)"
        );
        assert_eq!(lines[2], "  priorities 0: 100 % in panic");
        assert_eq!(lines[3], "  ejected 1, CONSECUTIVE_5XX 2 (enforced 2)");
        let words: Vec<&str> = lines[5].split_whitespace().collect();
        assert_eq!(
            words,
            [
                "10.0.0.1:80",
                "ejected",
                "1",
                "0",
                "4",
                "2",
                "1",
                "(3",
                "streams)",
                "back",
                "in",
                "2s,",
                "ejected",
                "2",
                "times,",
                "3",
                "5xx",
                "in",
                "a",
                "row"
            ]
        );
        assert_eq!(super::text(&[]), "there are no clusters of HTTP\n");
    }
}
