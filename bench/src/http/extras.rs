//! What a proxy does for each request besides forwarding, said to both.

use std::fmt::Write;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use underpass_config::ISTIO_TEXT;

use super::issuer::{self, Issuer};
use crate::system::NO_LOG;

/// Header that the policies look at, and its value in all requests.
pub(crate) const TENANT: &str = "x-tenant";
pub(crate) const KNOWN_TENANT: &str = "tenant-99";
/// Policies, of which the last lets the requests on: each wants a path, a method and a tenant.
const POLICIES: usize = 100;
/// Both write their log, and neither pays for a disk.
const LOG: &str = "/dev/null";

/// What a proxy of HTTP does besides forwarding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    /// Routes and clusters that are configured and not used.
    pub(crate) others: usize,
    /// A hundred policies of authorization.
    pub(crate) rbac: bool,
    /// A token that is verified.
    pub(crate) jwt: bool,
    /// An access log in Istio's format.
    pub(crate) log: bool,
    /// Without Istio's metrics of requests, which otherwise we always have (and stock Envoy has not).
    pub(crate) bare: bool,
}

impl Extras {
    /// Adds one by its name.
    pub(crate) fn add(&mut self, name: &str) -> Result<()> {
        match name {
            "rbac" => self.rbac = true,
            "jwt" => self.jwt = true,
            "log" => self.log = true,
            "bare" => self.bare = true,
            "all" => (self.rbac, self.jwt, self.log) = (true, true, true),
            _ => bail!("{name:?} is not known; known: rbac, jwt, log, all, bare"),
        }
        Ok(())
    }

    /// Our node's access log.
    pub(super) fn our_log(self) -> String {
        match self.log {
            true => format!("[{{path: {LOG}, format: istio}}]"),
            false => NO_LOG.to_owned(),
        }
    }

    /// What our table of routes has besides.
    pub(super) fn ours(self) -> String {
        let mut text = String::new();
        if self.bare {
            text.push_str("    metrics: [{metric: ALL_METRICS, disabled: true}]\n");
        }
        if self.jwt {
            let rule =
                json!([{"jwt_rules": [{"issuer": issuer::NAME, "audiences": ["shop"], "jwks": Issuer::get().keys}]}]);
            let _ = writeln!(text, "    request_authentication: {rule}");
        }
        if self.rbac {
            let policies: Vec<Value> = (0..POLICIES)
                .map(|number| {
                    json!({"name": format!("policy-{number:02}"), "namespace": "shop", "action": "ALLOW", "rules": [{
                        "to": [{"operation": {"paths": [path(number)], "methods": ["GET"]}}],
                        "when": [{"key": format!("request.headers[{TENANT}]"), "values": [tenant(number)]}],
                    }]})
                })
                .collect();
            let _ = writeln!(text, "    authorization: {}", json!(policies));
        }
        text
    }

    /// The access log of Envoy's connection manager.
    pub(super) fn envoys_log(self) -> String {
        if !self.log {
            return String::new();
        }
        let log = json!([{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": LOG,
            "log_format": {"text_format_source": {"inline_string": ISTIO_TEXT}},
        }}]);
        format!("          access_log: {log}\n")
    }

    /// Envoy's filters before its router, as istiod writes them, each with a comma after it.
    pub(super) fn envoys_filters(self) -> String {
        let filters = [
            self.jwt.then(|| {
                json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                    "providers": {"bench": {
                        "issuer": issuer::NAME,
                        "audiences": ["shop"],
                        "local_jwks": {"inline_string": Issuer::get().keys},
                        "payload_in_metadata": "payload",
                        "forward": true,
                    }},
                    "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
                        {"provider_name": "bench"}, {"allow_missing": {}},
                    ]}}}],
                }})
            }),
            self.rbac.then(|| {
                let policies: serde_json::Map<String, Value> = (0..POLICIES)
                    .map(|number| {
                        (
                            format!("ns[shop]-policy[policy-{number:02}]-rule[0]"),
                            envoys_policy(number),
                        )
                    })
                    .collect();
                json!({"name": "envoy.filters.http.rbac", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                    "rules": {"action": "ALLOW", "policies": policies},
                }})
            }),
        ];
        filters
            .into_iter()
            .flatten()
            .map(|filter| format!("{filter}, "))
            .collect()
    }
}

fn tenant(number: usize) -> String {
    format!("tenant-{number:02}")
}

/// What a policy wants of the path: the last takes any.
fn path(number: usize) -> String {
    match number + 1 {
        POLICIES => "/*".to_owned(),
        _ => format!("/api/{number}/*"),
    }
}

fn envoys_policy(number: usize) -> Value {
    let path = path(number);
    let prefix = path.trim_end_matches('*');
    json!({
        "permissions": [{"and_rules": {"rules": [
            {"or_rules": {"rules": [{"url_path": {"path": {"prefix": prefix}}}]}},
            {"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}]}},
        ]}}],
        "principals": [{"and_ids": {"ids": [
            {"or_ids": {"ids": [{"header": {"name": TENANT, "string_match": {"exact": tenant(number)}}}]}},
        ]}}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_policy_and_no_other_is_for_the_requests() {
        let matching = (0..POLICIES).filter(|number| tenant(*number) == KNOWN_TENANT || path(*number) == "/*");
        assert_eq!(matching.collect::<Vec<_>>(), [POLICIES - 1]);
    }
}
