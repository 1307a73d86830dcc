//! The command that asks a running proxy how it stands with istiod, and with its certificates: `status`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::ask::{AskError, ask, list, table, word};

/// Prints how the proxy whose admin server is at `address` stands, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), AskError> {
    let status: Value = ask(address, "/status")?;
    if as_json {
        println!("{status}");
    } else {
        print!("{}", text(&status, SystemTime::now()));
    }
    Ok(())
}

fn text(status: &Value, now: SystemTime) -> String {
    let mut text = match &status["istiod"] {
        Value::Null => "istiod: none; the mesh is that of the configuration file\n".to_owned(),
        istiod => subscription("istiod", istiod, now),
    };
    if let waypoint @ Value::Object(_) = &status["istiod_for_waypoint"] {
        text.push_str(&subscription("istiod, for the waypoint", waypoint, now));
    }
    let mesh = &status["mesh"];
    let count = |what: &str| mesh[what].as_u64().unwrap_or(0);
    let _ = writeln!(
        text,
        "mesh: {} workloads, {} services, {} policies; change {}",
        count("workloads"),
        count("services"),
        count("policies"),
        count("generation")
    );
    match &status["identities"] {
        Value::Null => text.push_str("identities: none; there is neither istiod nor a certificate file\n"),
        identities => text.push_str(&certificates(identities, list(&status["pods"]), now)),
    }
    text
}

fn subscription(title: &str, istiod: &Value, now: SystemTime) -> String {
    let since = ago(&istiod["since"], now);
    let reason = istiod["reason"].as_str().map(|reason| format!(": {reason}"));
    let synced = if istiod["synced"] == true {
        ""
    } else {
        ", not yet synced"
    };
    let mut text = format!(
        "{title}: {} at {}{since}{}{synced}; {} disconnects\n",
        word(&istiod["state"]),
        word(&istiod["address"]),
        reason.unwrap_or_default(),
        istiod["disconnects"]
    );
    for (kind, of_type) in istiod["types"].as_object().into_iter().flatten() {
        let _ = writeln!(
            text,
            "  {kind}: {} resources; {} responses accepted, {} not{}",
            of_type["resources"],
            of_type["acks"],
            of_type["nacks"],
            ago(&of_type["last_response"], now).replace(" for ", ", the last before ")
        );
    }
    for rejected in list(&istiod["rejected"]) {
        let of = |field: &str| word(&rejected[field]);
        let _ = writeln!(text, "  REJECTED {} {}: {}", of("type"), of("name"), of("reason"));
    }
    let listed = list(&istiod["rejected"]).len() as u64;
    let more = istiod["rejected_count"].as_u64().unwrap_or(0).saturating_sub(listed);
    if more > 0 {
        let _ = writeln!(text, "  and {more} more are rejected");
    }
    let waiting = &istiod["waiting"];
    if !waiting.is_null() {
        let since = ago(&waiting["since"], now);
        let (changes, reason) = (&waiting["changes"], word(&waiting["reason"]));
        let _ = writeln!(
            text,
            "  NOT IN FORCE{since}: {changes} changes of rejected updates: {reason}"
        );
    }
    text
}

fn certificates(identities: &Value, pods: &[Value], now: SystemTime) -> String {
    let known = list(&identities["certificates"]);
    let mut text = format!(
        "identities: {} of trust domain {}, {} roots\n",
        known.len(),
        word(&identities["trust_domain"]),
        identities["roots"]
    );
    let titles = ["IDENTITY", "CERTIFICATE", "EXPIRES IN", "RENEWED IN", "PODS", "NOTE"];
    let row = |certificate: &Value| {
        let identity = word(&certificate["identity"]);
        let held_by = pods.iter().filter(|pod| pod["identity"] == *identity).count();
        [
            identity,
            word(&certificate["state"]),
            within(&certificate["not_after"], now),
            within(&certificate["renew_at"], now),
            held_by.to_string(),
            certificate["last_error"].as_str().unwrap_or("").to_owned(),
        ]
    };
    if !known.is_empty() {
        text.push_str(&table("  ", titles, known.iter().map(row)));
    }
    for pod in pods.iter().filter(|pod| pod["identity"].is_null()) {
        let _ = writeln!(
            text,
            "  {} has no identity: the mesh does not know it",
            word(&pod["uid"])
        );
    }
    text
}

fn time(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}

/// ` for 3m 5s`, or nothing.
fn ago(value: &Value, now: SystemTime) -> String {
    let past = time(value).map(|time| now.duration_since(time).unwrap_or_default());
    past.map_or_else(String::new, |past| format!(" for {}", rounded(past)))
}

/// `23h 59m`, or `-` of what is past or unknown.
fn within(value: &Value, now: SystemTime) -> String {
    let left = time(value).and_then(|time| time.duration_since(now).ok());
    left.map_or_else(|| "-".to_owned(), rounded)
}

/// In whole seconds; beyond an hour, in whole minutes.
fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let shown = if seconds < 3600 { seconds } else { seconds / 60 * 60 };
    humantime::format_duration(Duration::from_secs(shown)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn what_is_wrong_is_said() {
        let status = json!({
            "istiod": {
                "address": "istiod:15012", "state": "disconnected", "since": "2026-01-01T00:00:00Z",
                "reason": "no connection to istiod", "synced": true, "disconnects": 2,
                "types": {"Address": {"resources": 7, "acks": 5, "nacks": 1, "last_response": "2026-01-01T00:00:00Z"}},
                "rejected": [{"type": "Address", "name": "a/b", "reason": "`uid` is missing"}], "rejected_count": 3,
            },
            "mesh": {"generation": 9, "workloads": 4, "services": 3, "policies": 1},
            "identities": {"trust_domain": "cluster.local", "roots": 1, "certificates": [
                {"identity": "spiffe://cluster.local/ns/a/sa/b", "state": "valid", "not_after": "2026-01-02T00:00:30Z",
                 "renew_at": "2026-01-01T10:01:00Z", "last_error": null},
                {"identity": "spiffe://cluster.local/ns/a/sa/c", "state": "missing", "not_after": null, "renew_at": null,
                 "last_error": "the CA does not accept us"},
            ]},
            "pods": [
                {"uid": "one", "identity": "spiffe://cluster.local/ns/a/sa/b"},
                {"uid": "two", "identity": "spiffe://cluster.local/ns/a/sa/b"},
                {"uid": "three", "identity": null},
            ],
        });
        let expected = "\
istiod: disconnected at istiod:15012 for 1m: no connection to istiod; 2 disconnects
  Address: 7 resources; 5 responses accepted, 1 not, the last before 1m
  REJECTED Address a/b: `uid` is missing
  and 2 more are rejected
mesh: 4 workloads, 3 services, 1 policies; change 9
identities: 2 of trust domain cluster.local, 1 roots
  IDENTITY                          CERTIFICATE  EXPIRES IN  RENEWED IN  PODS  NOTE
  spiffe://cluster.local/ns/a/sa/b  valid        23h 59m     10h         2
  spiffe://cluster.local/ns/a/sa/c  missing      -           -           0     the CA does not accept us
  three has no identity: the mesh does not know it
";
        assert_eq!(text(&status, at("2026-01-01T00:01:00Z")), expected);
    }

    #[test]
    fn a_node_without_istiod_says_so() {
        let status = json!({"istiod": null, "mesh": {"generation": 1}, "identities": null, "pods": null});
        let expected = "\
istiod: none; the mesh is that of the configuration file
mesh: 0 workloads, 0 services, 0 policies; change 1
identities: none; there is neither istiod nor a certificate file
";
        assert_eq!(text(&status, SystemTime::now()), expected);
    }
}
