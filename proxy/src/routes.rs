//! The command that asks a running proxy what becomes of requests of HTTP, and how many there were: `routes`.

use std::net::SocketAddr;

use serde_json::Value;

use crate::ask::{self, AskError, list, table, word};

/// Prints the routes of the proxy whose admin server is at `address`, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), AskError> {
    ask::show(address, "/routes", as_json, text)
}

const COLUMNS: [&str; 8] = [
    "HOST", "ROUTE", "MATCH", "TO", "FILTERS", "REQUESTS", "RETRIES", "ANSWERS",
];

fn text(tables: &[Value]) -> String {
    if tables.is_empty() {
        return "there are no routes of HTTP\n".to_owned();
    }
    let mut text = String::new();
    for one in tables {
        let listeners: Vec<String> = list(&one["listeners"]).iter().map(word).collect();
        let of = match listeners.is_empty() {
            true => "no listener".to_owned(),
            false => listeners.join(", "),
        };
        text += &format!("{} (of {of})\n", word(&one["table"]));
        for (place, filter) in (1..).zip(list(&one["filters"])) {
            text += &format!("  {place} {}\n", filter_line(filter));
        }
        let hosts = list(&one["virtual_hosts"]).iter();
        let rows = hosts.flat_map(|host| list(&host["routes"]).iter().map(move |route| row(host, route)));
        text += &table("  ", COLUMNS, rows);
    }
    text
}

/// What requests go through before they are routed.
fn filter_line(filter: &Value) -> String {
    let number = |key: &str| filter[key].as_u64().unwrap_or(0);
    match filter["kind"].as_str().unwrap_or("-") {
        "local_rate_limit" => format!(
            "rate limit: {} at once, {} each {}",
            number("max_tokens"),
            number("tokens_per_fill"),
            word(&filter["fill_interval"])
        ),
        "jwt" => {
            let issuers: Vec<String> = list(&filter["issuers"]).iter().map(word).collect();
            format!("tokens of {}", issuers.join(", "))
        }
        "rbac" => {
            let action = filter["action"].as_str().unwrap_or("only dry run");
            format!(
                "policies: {action}, {}; dry run {}",
                number("policies"),
                number("dry_run")
            )
        }
        "ext_authz" => format!("asks {}", word(&filter["provider"])),
        "of_routes" => "nothing but what routes have".to_owned(),
        other => other.to_owned(),
    }
}

fn row(host: &Value, route: &Value) -> [String; COLUMNS.len()] {
    let counted = &route["counted"];
    let number = |key: &str| counted[key].as_u64().unwrap_or(0);
    let star = match route["counted_with"].as_u64() {
        Some(0) | None => "",
        // Of all routes of this name.
        Some(_) => "*",
    };
    let name = route["name"].as_str().filter(|name| !name.is_empty());
    [
        word(&host["name"]),
        name.unwrap_or("-").to_owned(),
        word(&route["match"]),
        target(route),
        different(list(&route["filters"])),
        format!("{}{star}", number("requests")),
        format!("{}{star}", number("retries")),
        answers(counted),
    ]
}

/// What it has in the place of the table's filters, which are counted from 1.
fn different(filters: &[Value]) -> String {
    let words = filters.iter().map(|one| {
        let place = one["place"].as_u64().unwrap_or(0) + 1;
        format!("{place} {}", word(&one["is"]))
    });
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => "-".to_owned(),
        false => words.join(", "),
    }
}

fn target(route: &Value) -> String {
    let clusters = list(&route["clusters"]);
    match (clusters, &route["status"]) {
        ([], Value::Null) => word(&route["action"]),
        ([], status) => format!("{} {status}", word(&route["action"])),
        ([only], _) => word(&only["cluster"]),
        (several, _) => {
            let shares = several
                .iter()
                .map(|one| format!("{} {}", word(&one["cluster"]), one["weight"]));
            shares.collect::<Vec<_>>().join(", ")
        }
    }
}

/// By status, and what went wrong.
fn answers(counted: &Value) -> String {
    let counts = ["by_code", "by_flags"].into_iter();
    let counts = counts.flat_map(|key| counted[key].as_object().into_iter().flatten());
    let counts: Vec<String> = counts.map(|(name, count)| format!("{name} {count}")).collect();
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_where_requests_go_and_what_came_of_them() {
        let forward = json!({"name": "v1", "match": "prefix /v1", "action": "forward",
            "clusters": [{"cluster": "a", "weight": 9}, {"cluster": "b", "weight": 1}], "counted_with": 0,
            "counted": {"requests": 12, "retries": 1, "by_code": {"200": 10, "503": 2}, "by_flags": {"UF": 2}}});
        let direct = json!({"name": "", "match": "prefix /", "action": "direct", "status": 404, "counted_with": 1, "filters": [{"place": 1, "is": "off"}],
            "counted": {"requests": 3, "retries": 0, "by_code": {"404": 3}, "by_flags": {}}});
        let tables = [
            json!({"table": "t", "listeners": ["web"], "filters": [{"kind": "jwt", "issuers": ["i"]},
                {"kind": "rbac", "action": "DENY", "policies": 2, "dry_run": 0}],
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [forward, direct]}]}),
        ];
        let text = text(&tables);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["t", "(of", "web)"]);
        assert_eq!(lines[1], ["1", "tokens", "of", "i"]);
        assert_eq!(lines[4][..2], ["all", "v1"]);
        assert_eq!(
            lines[4][4..],
            [
                "a", "9,", "b", "1", "-", "12", "1", "200", "10,", "503", "2,", "UF", "2"
            ]
        );
        assert_eq!(
            lines[5][1..],
            ["-", "prefix", "/", "direct", "404", "2", "off", "3*", "0*", "404", "3"]
        );
        assert_eq!(super::text(&[]), "there are no routes of HTTP\n");
    }
}
