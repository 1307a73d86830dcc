//! `/keys`: whose tokens requests come with, and the keys that verify them: their names and kinds, never what they are made of.

use std::time::SystemTime;

use serde_json::{Value, json};
use underpass_config::Text;
use underpass_config::http::{Jwk, JwksSource};

use crate::http::filters::jwt::ProvidersKeys;
use crate::node::Node;

/// The whole view: a provider for each source of keys, by issuer.
pub(super) fn keys(node: &Node) -> Value {
    let snapshot = node.snapshot();
    let mut all = node.key_sets.asked_for(&snapshot.config.http);
    all.sort_by_key(|(keys, _)| keys.provider.issuer.clone());
    all.iter().map(|(keys, tables)| provider(keys, tables)).collect()
}

fn provider(keys: &ProvidersKeys, tables: &[Text]) -> Value {
    let provider = &keys.provider;
    let in_force = keys.in_force();
    json!({
        "issuer": &*provider.issuer,
        "provider": &*provider.name,
        "tables": tables.iter().map(|table| &**table).collect::<Vec<_>>(),
        "state": if in_force.is_some() { "in-force" } else { "none-yet" },
        "keys": in_force.iter().flat_map(|set| set.keys.keys()).map(key).collect::<Vec<_>>(),
        "remote": match &provider.keys {
            JwksSource::Inline(_) => Value::Null,
            JwksSource::Remote(remote) => {
                let fetches = keys.fetches();
                json!({
                    "cluster": &*remote.cluster,
                    "host": remote.authority.host(),
                    // What follows may be a secret.
                    "path": remote.path.path(),
                    "fetched": fetches.fetched.map(time),
                    "failed": fetches.failed.as_ref().map(|(at, _)| time(*at)),
                    "failure": fetches.failed.as_ref().map(|(_, why)| why),
                    "next": fetches.next.map(time),
                })
            }
        },
    })
}

fn key(key: &Jwk) -> Value {
    json!({
        "kid": key.kid,
        "alg": key.alg,
        "kind": key.material.kind(),
    })
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
