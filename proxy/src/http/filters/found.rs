//! What filters have found out of a request, as Envoy's leave it behind as dynamic metadata; kept for logs that ask for it.

use std::sync::Arc;

use serde_json::Value;
use underpass_config::Text;

/// What verified tokens claim is under this name of Envoy's filter, and under istiod's `payload_in_metadata`.
const TOKENS: (&str, &str) = ("envoy.filters.http.jwt_authn", "payload");
/// What authorization servers have told.
const ASKED: &str = "envoy.filters.http.ext_authz";
/// Which policies shadow rules have matched.
const RULES: &str = "envoy.filters.http.rbac";

/// What there is of one request.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub(super) claims: Option<Arc<Value>>,
    pub(super) metadata: Option<Arc<Value>>,
    pub(super) shadow: Vec<(Text, Text)>,
}

impl Found {
    /// Writes what is at `path`: a filter's name, and names within what it has left. Texts as they are, all else as JSON. False, and nothing written, if it is not there.
    pub fn tell(&self, path: &[Text], out: &mut Vec<u8>) -> bool {
        let Some((filter, rest)) = path.split_first() else {
            return false;
        };
        let found = match &**filter {
            name if name == TOKENS.0 => match rest.split_first() {
                Some((key, rest)) if **key == *TOKENS.1 => self.claims.as_deref().and_then(|all| within(all, rest)),
                _ => None,
            },
            ASKED => self.metadata.as_deref().and_then(|all| within(all, rest)),
            RULES => match rest {
                // What was told last under a name is what counts.
                [key] => {
                    let told = self.shadow.iter().rev().find(|(known, _)| known == key);
                    return told.is_some_and(|(_, policy)| {
                        out.extend_from_slice(policy.as_bytes());
                        true
                    });
                }
                _ => None,
            },
            _ => None,
        };
        match found {
            None => return false,
            Some(Value::String(text)) => out.extend_from_slice(text.as_bytes()),
            Some(other) => out.extend_from_slice(other.to_string().as_bytes()),
        }
        true
    }
}

/// What is within a value, by names. A list has none.
fn within<'v>(all: &'v Value, names: &[Text]) -> Option<&'v Value> {
    names.iter().try_fold(all, |all, name| all.as_object()?.get(&**name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_filters_have_found_is_told_by_their_names() {
        let found = Found {
            claims: Some(Arc::new(json!({"sub": "alice", "realm": {"roles": ["a", 1]}}))),
            metadata: Some(Arc::new(json!({"tenant": "blue", "level": 3}))),
            shadow: vec![("k".into(), "first".into()), ("k".into(), "last".into())],
        };
        for (path, expected) in [
            ("envoy.filters.http.jwt_authn:payload:sub", Some("alice")),
            ("envoy.filters.http.jwt_authn:payload:realm:roles", Some("[\"a\",1]")),
            ("envoy.filters.http.jwt_authn:other:sub", None),
            ("envoy.filters.http.ext_authz:tenant", Some("blue")),
            ("envoy.filters.http.ext_authz:level", Some("3")),
            ("envoy.filters.http.ext_authz:tenant:blue", None),
            ("envoy.filters.http.rbac:k", Some("last")),
            ("envoy.filters.http.rbac:none", None),
            ("com.test:tenant", None),
        ] {
            let path: Vec<Text> = path.split(':').map(Text::from).collect();
            let mut out = Vec::new();
            let is_told = found.tell(&path, &mut out);
            let told = is_told.then(|| String::from_utf8(out).unwrap());
            assert_eq!(told.as_deref(), expected, "{path:?}");
        }
    }
}
