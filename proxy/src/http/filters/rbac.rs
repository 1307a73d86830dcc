//! Rules, asked for a request.

use http::StatusCode;
use underpass_config::http::{Asking, Peer, Rbac, Rules, Ruling, Settled};
use underpass_config::{Action, Text};

use super::Refusal;
use crate::telemetry::Telemetry;

/// What shadow rules have said of a request: names and values.
type Told = [Option<(Text, Text)>; 2];

/// What is left of rules for one connection.
#[derive(Debug)]
pub struct SettledRbac {
    rules: Option<Settled>,
    shadow: Option<Settled>,
    /// What shadow rules have matched is told under it.
    shadow_key: Text,
    /// And what they would have done, under this one: let it pass, or not.
    result_key: Text,
    results: [Text; 2],
    /// Whether that is a trial; if not, it says whom to ask.
    is_dry_run: bool,
}

impl SettledRbac {
    /// Of `rbac`, for requests of `peer`.
    pub fn new(rbac: &Rbac, peer: &Peer<'_>) -> Self {
        let settle = |rules: &Option<_>| rules.as_ref().map(|rules: &Rules| rules.settle(peer));
        Self {
            rules: settle(&rbac.rules),
            shadow: settle(&rbac.shadow),
            shadow_key: Rbac::shadow_key(&rbac.shadow_prefix),
            result_key: Rbac::shadow_result_key(&rbac.shadow_prefix),
            results: ["denied".into(), "allowed".into()],
            is_dry_run: *rbac.shadow_prefix != *Rbac::ASKING_PREFIX,
        }
    }

    /// Judges a request; what shadow rules would have done is counted. Also answers that, and which policy of theirs has matched, under the
    /// names by which Envoy tells it.
    pub fn judge(
        &self,
        rbac: &Rbac,
        peer: &Peer<'_>,
        asking: &Asking<'_>,
        telemetry: &Telemetry,
    ) -> (Result<(), Refusal>, Told) {
        let mut told = [None, None];
        if let (Some(shadow), Some(settled)) = (&rbac.shadow, &self.shadow) {
            let ruling = shadow.rule(settled, peer, asking);
            if self.is_dry_run {
                count_dry_run(&ruling, telemetry);
            }
            let result = &self.results[usize::from(ruling.is_allowed)];
            told = [
                ruling.policy.map(|policy| (self.shadow_key.clone(), policy.clone())),
                Some((self.result_key.clone(), result.clone())),
            ];
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
        count_dry_run(&ruling, telemetry);
    }
    let Some(rules) = &rbac.rules else { return Ok(()) };
    // What depends on a request is not known, and what is not known does not pass.
    let policy = match rules.of_connection(peer) {
        Some(ruling) if ruling.is_allowed => return Ok(()),
        ruling => ruling.map_or("none", |ruling| named(&ruling)),
    };
    Err(details(policy))
}

/// Of a request that `policy` refuses, in Envoy's words.
pub fn refusal(policy: &str) -> Refusal {
    Refusal {
        status: StatusCode::FORBIDDEN,
        text: "RBAC: access denied",
        details: details(policy).replace(char::is_whitespace, "_"),
        challenge: None,
    }
}

fn details(policy: &str) -> String {
    format!("rbac_access_denied_matched_policy[{policy}]")
}

fn count_dry_run(ruling: &Ruling<'_>, telemetry: &Telemetry) {
    let would = match ruling.is_allowed {
        true => Action::Allow,
        false => Action::Deny,
    };
    telemetry.count_dry_run(named(ruling), would);
}

fn named<'a>(ruling: &Ruling<'a>) -> &'a str {
    ruling.policy.map_or("none", |policy| policy)
}
