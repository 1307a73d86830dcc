//! Who may ask for what (`config.rbac.v3.RBAC`): the rules that a table's requests go through before they are routed.
//!
//! **One idea.** A rule is a tree of conditions, on the connection and on the request. What a connection answers is settled once for it:
//! rules that can't concern it are gone, and a request asks only the rest ([`Rules::settle`]). Half of an answer is none: a condition of
//! which a part is unknown is unknown, unless the other parts decide it (Kleene's logic), so that what is settled is what would have been
//! found anew.

mod claim;
mod condition;
mod template;
#[cfg(test)]
mod tests;

pub use claim::{ClaimMatch, ValueMatch};
pub use condition::{Asking, Condition, Peer};
pub use template::{BadTemplate, PathTemplate};

use crate::Text;

/// One filter of rules (`extensions.filters.http.rbac.v3.RBAC`).
#[derive(Clone, Debug, Default)]
pub struct Rbac {
    /// What decides; none: all may pass.
    pub rules: Option<Rules>,
    /// What is only told: what it would have decided (`shadow_rules`).
    pub shadow: Option<Rules>,
    /// Before the names under which that is told (`shadow_rules_stat_prefix`).
    pub shadow_prefix: Text,
}

impl Rbac {
    /// [`Rbac::shadow_prefix`] of rules that say which requests an authorization server is asked about, which istiod writes.
    pub const ASKING_PREFIX: &str = "istio_ext_authz_";

    /// The name under which Envoy's tell which policy shadow rules with this prefix have matched.
    pub fn shadow_key(prefix: &str) -> Text {
        format!("{prefix}shadow_effective_policy_id").into()
    }

    /// And what they would have done: `allowed` or `denied`.
    pub fn shadow_result_key(prefix: &str) -> Text {
        format!("{prefix}shadow_engine_result").into()
    }
}

/// Rules with one action.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What becomes of a request that a policy matches.
    pub action: RuleAction,
    policies: Vec<Policy>,
}

/// What becomes of a request that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// It passes, and no other does.
    Allow,
    /// It does not pass, and all others do.
    Deny,
    /// It is noted; all pass.
    Log,
}

/// A named condition.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The name that is told (`%RESPONSE_CODE_DETAILS%`).
    pub name: Text,
    /// What is asked for.
    pub permission: Condition,
    /// By whom.
    pub principal: Condition,
}

/// What rules say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling<'a> {
    /// Whether it may pass.
    pub is_allowed: bool,
    /// The policy that matched, if one did.
    pub policy: Option<&'a Text>,
    /// Its place among [`Rules::policies`].
    pub place: Option<usize>,
}

/// What is left of rules for one connection.
#[derive(Clone, Debug)]
pub struct Settled(Vec<Open>);

/// A policy that may match.
#[derive(Clone, Copy, Debug)]
struct Open {
    policy: usize,
    is_permission_met: bool,
    is_principal_met: bool,
}

impl Rules {
    /// Of two policies that match, the one whose name comes first is told, as in Envoy.
    pub fn new(action: RuleAction, mut policies: Vec<Policy>) -> Self {
        policies.sort_by(|one, other| one.name.cmp(&other.name));
        Self { action, policies }
    }

    /// The policies, in the order in which they are told.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Whether any of them asks for something that only a request has.
    pub fn ask_for_requests(&self) -> bool {
        let asks = |policy: &Policy| policy.permission.asks_for_request() || policy.principal.asks_for_request();
        self.policies.iter().any(asks)
    }

    /// What is left of them for requests of `peer`.
    pub fn settle(&self, peer: &Peer<'_>) -> Settled {
        let mut left = Vec::new();
        for (place, policy) in self.policies.iter().enumerate() {
            let [permission, principal] = [&policy.permission, &policy.principal].map(|one| one.settled(peer));
            if permission == Some(false) || principal == Some(false) {
                continue;
            }
            let open = Open {
                policy: place,
                is_permission_met: permission.is_some(),
                is_principal_met: principal.is_some(),
            };
            left.push(open);
            if open.is_permission_met && open.is_principal_met {
                // None behind it is ever asked.
                break;
            }
        }
        Settled(left)
    }

    /// What they say of a request, where `settled` is what is left of them for its connection.
    pub fn rule(&self, settled: &Settled, peer: &Peer<'_>, asking: &Asking<'_>) -> Ruling<'_> {
        let matching = settled.0.iter().find_map(|open| {
            let policy = &self.policies[open.policy];
            let is_met = (open.is_permission_met || policy.permission.holds(peer, asking))
                && (open.is_principal_met || policy.principal.holds(peer, asking));
            is_met.then_some(open.policy)
        });
        self.ruling(matching)
    }

    /// The same, where nothing was settled for the connection.
    pub fn rule_anew(&self, peer: &Peer<'_>, asking: &Asking<'_>) -> Ruling<'_> {
        let is_met = |policy: &Policy| policy.permission.holds(peer, asking) && policy.principal.holds(peer, asking);
        self.ruling(self.policies.iter().position(is_met))
    }

    /// What they say of a connection that carries no requests; none: it depends on one.
    pub fn of_connection(&self, peer: &Peer<'_>) -> Option<Ruling<'_>> {
        let first = self.settle(peer).0.first().copied();
        let is_clear = first.is_none_or(|open| open.is_permission_met && open.is_principal_met);
        is_clear.then(|| self.ruling(first.map(|open| open.policy)))
    }

    fn ruling(&self, place: Option<usize>) -> Ruling<'_> {
        let policy = place.map(|place| &self.policies[place].name);
        Ruling {
            place,
            is_allowed: match self.action {
                RuleAction::Allow => policy.is_some(),
                RuleAction::Deny => policy.is_none(),
                RuleAction::Log => true,
            },
            policy,
        }
    }
}
