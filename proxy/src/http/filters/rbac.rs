//! Rules, asked for a request.

use std::sync::OnceLock;

use http::StatusCode;
use underpass_config::http::{Asking, Peer, Rbac, Rules, Ruling, Settled};
use underpass_config::{Action, Text};

use super::Refusal;
use crate::telemetry::{DryRunCounter, Telemetry};

/// What shadow rules have said of a request: names and values.
type Told = [Option<(Text, Text)>; 2];

/// What is left of rules for one connection.
#[derive(Debug)]
pub struct SettledRbac {
    rules: Option<Settled>,
    shadow: Option<SettledShadow>,
}

/// What is left of shadow rules.
#[derive(Debug)]
struct SettledShadow {
    settled: Settled,
    names: ShadowNames,
    /// Where that is a trial, how it is counted; if it is none, it says whom to ask.
    dry_run: Option<DryRun>,
}

/// The names by which Envoy tells what shadow rules have said.
#[derive(Debug)]
struct ShadowNames {
    /// Of the policy that has matched.
    policy: Text,
    /// Of what they would have done, which is one of these: not let it pass, or let it.
    result: Text,
    results: [Text; 2],
}

impl ShadowNames {
    fn of(rbac: &Rbac) -> Self {
        Self {
            policy: Rbac::shadow_key(&rbac.shadow_prefix),
            result: Rbac::shadow_result_key(&rbac.shadow_prefix),
            results: ["denied".into(), "allowed".into()],
        }
    }

    fn tell(&self, ruling: &Ruling<'_>) -> Told {
        let result = &self.results[usize::from(ruling.is_allowed)];
        [
            ruling.policy.map(|policy| (self.policy.clone(), policy.clone())),
            Some((self.result.clone(), result.clone())),
        ]
    }
}

/// The counters of shadow rules, each looked up when it is first needed: one for each policy, and one for where none matches.
#[derive(Debug)]
struct DryRun(Box<[OnceLock<DryRunCounter>]>);

impl DryRun {
    fn of(rules: &Rules) -> Self {
        Self((0..=rules.policies().len()).map(|_| OnceLock::new()).collect())
    }

    fn count(&self, ruling: &Ruling<'_>, telemetry: &Telemetry) {
        let place = ruling.place.unwrap_or(self.0.len() - 1);
        match self.0.get(place) {
            Some(counter) => counter.get_or_init(|| dry_run_counter(ruling, telemetry)).inc(),
            None => dry_run_counter(ruling, telemetry).inc(),
        };
    }
}

fn is_dry_run(rbac: &Rbac) -> bool {
    *rbac.shadow_prefix != *Rbac::ASKING_PREFIX
}

/// What came of judging: why it does not pass; and which policy of shadow rules has matched and what they would have done, under the names by which Envoy tells it.
type Judged = (Result<(), Refusal>, Told);

impl SettledRbac {
    /// Of `rbac`, for requests of `peer`.
    pub fn new(rbac: &Rbac, peer: &Peer<'_>) -> Self {
        Self {
            rules: rbac.rules.as_ref().map(|rules| rules.settle(peer)),
            shadow: rbac.shadow.as_ref().map(|shadow| SettledShadow {
                settled: shadow.settle(peer),
                names: ShadowNames::of(rbac),
                dry_run: is_dry_run(rbac).then(|| DryRun::of(shadow)),
            }),
        }
    }

    /// Judges a request; what shadow rules would have done is counted.
    pub fn judge(&self, rbac: &Rbac, peer: &Peer<'_>, asking: &Asking<'_>, telemetry: &Telemetry) -> Judged {
        let mut told = [None, None];
        if let (Some(rules), Some(shadow)) = (&rbac.shadow, &self.shadow) {
            let ruling = rules.rule(&shadow.settled, peer, asking);
            if let Some(dry_run) = &shadow.dry_run {
                dry_run.count(&ruling, telemetry);
            }
            told = shadow.names.tell(&ruling);
        }
        let (Some(rules), Some(settled)) = (&rbac.rules, &self.rules) else {
            return (Ok(()), told);
        };
        (passed(&rules.rule(settled, peer, asking)), told)
    }
}

/// The same, by rules that nothing was settled of.
pub fn judge_anew(rbac: &Rbac, peer: &Peer<'_>, asking: &Asking<'_>, telemetry: &Telemetry) -> Judged {
    let shadow = rbac.shadow.as_ref().map(|shadow| shadow.rule_anew(peer, asking));
    if let Some(ruling) = shadow.as_ref().filter(|_| is_dry_run(rbac)) {
        dry_run_counter(ruling, telemetry).inc();
    }
    let told = shadow.map_or([None, None], |ruling| ShadowNames::of(rbac).tell(&ruling));
    let ruling = rbac.rules.as_ref().map(|rules| rules.rule_anew(peer, asking));
    (ruling.map_or(Ok(()), |ruling| passed(&ruling)), told)
}

fn passed(ruling: &Ruling<'_>) -> Result<(), Refusal> {
    match ruling.is_allowed {
        true => Ok(()),
        false => Err(refusal(named(ruling))),
    }
}

/// Judges a connection without requests; what shadow rules would have done is counted, where there is somewhere to count it.
///
/// # Errors
/// Why it does not go on.
pub fn judge_connection(rbac: &Rbac, peer: &Peer<'_>, telemetry: Option<&Telemetry>) -> Result<(), String> {
    if let Some(telemetry) = telemetry
        && let Some(ruling) = rbac.shadow.as_ref().and_then(|shadow| shadow.of_connection(peer))
    {
        dry_run_counter(&ruling, telemetry).inc();
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

fn dry_run_counter(ruling: &Ruling<'_>, telemetry: &Telemetry) -> DryRunCounter {
    let would = match ruling.is_allowed {
        true => Action::Allow,
        false => Action::Deny,
    };
    telemetry.dry_run(named(ruling), would)
}

fn named<'a>(ruling: &Ruling<'a>) -> &'a str {
    ruling.policy.map_or("none", |policy| policy)
}
