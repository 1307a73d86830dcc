//! The command that asks a running proxy which keys verify tokens: `keys`.

use std::net::SocketAddr;

use serde_json::Value;

use crate::ask::{self, AskError, list, table, word};

/// Prints the keys of the proxy whose admin server is at `address`, or one JSON document.
///
/// # Errors
/// When it does not answer.
pub fn show(address: SocketAddr, as_json: bool) -> Result<(), AskError> {
    ask::show(address, "/keys", as_json, text)
}

const COLUMNS: [&str; 6] = ["ISSUER", "TABLES", "KEYS", "FROM", "FETCHED", "NOTE"];

fn text(providers: &[Value]) -> String {
    if providers.is_empty() {
        return "no tokens are asked for\n".to_owned();
    }
    table("", COLUMNS, providers.iter().map(row))
}

fn row(provider: &Value) -> [String; COLUMNS.len()] {
    let remote = &provider["remote"];
    let tables: Vec<String> = list(&provider["tables"]).iter().map(word).collect();
    let keys: Vec<String> = list(&provider["keys"]).iter().map(key).collect();
    [
        word(&provider["issuer"]),
        tables.join(", "),
        match keys.is_empty() {
            true => "none yet".to_owned(),
            false => keys.join(", "),
        },
        match remote["cluster"].as_str() {
            Some(cluster) => format!("{cluster}: {}{}", word(&remote["host"]), word(&remote["path"])),
            None => "the configuration".to_owned(),
        },
        word(&remote["fetched"]),
        match remote["failed"].as_str() {
            // An older failure is over.
            Some(failed) if remote["fetched"].as_str().is_none_or(|fetched| fetched < failed) => {
                format!("failed at {failed}: {}", word(&remote["failure"]))
            }
            _ => String::new(),
        },
    ]
}

/// Its name, and what it is for.
fn key(key: &Value) -> String {
    let name = key["kid"].as_str().filter(|kid| !kid.is_empty()).unwrap_or("-");
    let kind = key["alg"].as_str().filter(|alg| !alg.is_empty());
    format!("{name} ({})", kind.or(key["kind"].as_str()).unwrap_or("-"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_which_keys_there_are_and_why_not() {
        let inline = json!({"issuer": "a", "tables": ["t", "u"], "keys": [{"kid": "k1", "alg": "", "kind": "RSA"}], "remote": null});
        let remote = json!({"issuer": "b", "tables": ["t"], "keys": [], "remote": {"cluster": "c", "host": "i.test", "path": "/k",
            "fetched": null, "failed": "2026-01-01T00:00:00.000Z", "failure": "the answer has status 500"}});
        let text = text(&[inline, remote]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "t,", "u", "k1", "(RSA)", "the", "configuration", "-"]);
        assert_eq!(lines[2][..6], ["b", "t", "none", "yet", "c:", "i.test/k"]);
        assert!(text.contains("failed at 2026-01-01T00:00:00.000Z: the answer has status 500"));
        assert_eq!(super::text(&[]), "no tokens are asked for\n");
    }
}
