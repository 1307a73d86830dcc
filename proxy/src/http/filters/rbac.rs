//! Rules, asked for a request.

use http::StatusCode;
use underpass_config::Text;
use underpass_config::http::{Asking, Peer, Rbac, Rules, Ruling, Settled};

use super::Refusal;
use crate::telemetry::Telemetry;

/// What is left of rules for one connection.
#[derive(Debug)]
pub struct SettledRbac {
    rules: Option<Settled>,
    shadow: Option<Settled>,
}

impl SettledRbac {
    /// Of `rbac`, for requests of `peer`.
    pub fn new(rbac: &Rbac, peer: &Peer<'_>) -> Self {
        let settle = |rules: &Option<_>| rules.as_ref().map(|rules: &Rules| rules.settle(peer));
        Self {
            rules: settle(&rbac.rules),
            shadow: settle(&rbac.shadow),
        }
    }

    /// Judges a request; what shadow rules would have done is counted. Also answers which policy of theirs has matched, under the name by
    /// which Envoy tells it.
    pub fn judge(
        &self,
        rbac: &Rbac,
        peer: &Peer<'_>,
        asking: &Asking<'_>,
        telemetry: &Telemetry,
    ) -> (Result<(), Refusal>, Option<(String, Text)>) {
        let mut told = None;
        if let (Some(shadow), Some(settled)) = (&rbac.shadow, &self.shadow) {
            let ruling = shadow.rule(settled, peer, asking);
            telemetry.count_dry_run_of_request(named(&ruling), ruling.is_allowed);
            let name = || format!("{}shadow_effective_policy_id", rbac.shadow_prefix);
            told = ruling.policy.map(|policy| (name(), policy.clone()));
        }
        let (Some(rules), Some(settled)) = (&rbac.rules, &self.rules) else {
            return (Ok(()), told);
        };
        let ruling = rules.rule(settled, peer, asking);
        match ruling.is_allowed {
            true => (Ok(()), told),
            false => (Err(refusal(named(&ruling))), told),
        }
    }
}

/// Judges a connection without requests; what shadow rules would have done is counted.
///
/// # Errors
/// Why it does not go on.
pub fn judge_connection(rbac: &Rbac, peer: &Peer<'_>, telemetry: &Telemetry) -> Result<(), String> {
    if let Some(ruling) = rbac.shadow.as_ref().and_then(|shadow| shadow.of_connection(peer)) {
        telemetry.count_dry_run_of_request(named(&ruling), ruling.is_allowed);
    }
    let Some(rules) = &rbac.rules else { return Ok(()) };
    // What depends on a request is not known, and what is not known does not pass.
    let policy = match rules.of_connection(peer) {
        Some(ruling) if ruling.is_allowed => return Ok(()),
        ruling => ruling.map_or("none", |ruling| named(&ruling)),
    };
    Err(format!("rbac_access_denied_matched_policy[{policy}]"))
}

/// Of a request that `policy` refuses, in Envoy's words.
pub fn refusal(policy: &str) -> Refusal {
    let details = format!("rbac_access_denied_matched_policy[{policy}]");
    Refusal {
        status: StatusCode::FORBIDDEN,
        text: "RBAC: access denied",
        details: details.replace(char::is_whitespace, "_"),
    }
}

fn named<'a>(ruling: &Ruling<'a>) -> &'a str {
    ruling.policy.map_or("none", |policy| policy)
}
