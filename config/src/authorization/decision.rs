//! How the policies that guard a destination decide together: DENY before ALLOW, and an ALLOW policy that guards but
//! does not match denies, unless another matches.

use std::fmt;

use serde::Serialize;

use super::{Action, Authorization, Facts};
use crate::PolicyKey;

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is to be done.
    pub decision: Decision,
    /// What dry-run policies would have done, by policy. Normally empty, and then nothing was allocated.
    pub dry_run: Vec<DryRunMatch>,
}

impl Verdict {
    /// On a connection that no policy guards.
    pub fn allowed() -> Self {
        Self {
            decision: Decision::Allow { policy: None },
            dry_run: Vec::new(),
        }
    }
}

/// What is to be done with a connection, and on whose word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let it pass.
    Allow {
        /// The ALLOW policy that matched; `None` if the destination has no ALLOW policy.
        policy: Option<PolicyKey>,
    },
    /// Refuse it.
    Deny {
        /// The policy that matched, or the one that is unknown; `None` if no ALLOW policy matched.
        policy: Option<PolicyKey>,
        /// Why.
        why: DenyReason,
    },
}

impl Decision {
    /// Whether the connection may pass.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Why a connection is denied. Displayed in words for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// A DENY policy matched.
    MatchedDeny,
    /// ALLOW policies guard the destination, and none matched.
    NoAllowMatched,
    /// The destination refers to a policy that is not there, so what it would say is not known.
    UnknownPolicy,
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MatchedDeny => "a DENY policy matches the connection",
            Self::NoAllowMatched => "the destination has ALLOW policies and none matches the connection",
            Self::UnknownPolicy => "the destination refers to a policy that is not in the configuration",
        })
    }
}

/// What a dry-run policy would have done to a connection, were all dry-run policies in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRunMatch {
    /// The dry-run policy.
    pub policy: PolicyKey,
    /// DENY: it is a DENY policy and matched, or an ALLOW policy and neither it nor any other matched. ALLOW: it is an
    /// ALLOW policy and matched.
    pub would: Action,
}

/// Adds up the policies that guard one destination, in any order; [`Tally::verdict`] knows who goes first.
pub(crate) struct Tally<'a> {
    facts: Facts<'a>,
    denied_by: Option<&'a PolicyKey>,
    unknown: Option<&'a PolicyKey>,
    allowed_by: Option<&'a PolicyKey>,
    has_allow: bool,
    dry_run: DryRun<'a>,
}

#[derive(Default)]
struct DryRun<'a> {
    matched: Vec<DryRunMatch>,
    unmatched_allow: Vec<&'a PolicyKey>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(facts: Facts<'a>) -> Self {
        Self {
            facts,
            denied_by: None,
            unknown: None,
            allowed_by: None,
            has_allow: false,
            dry_run: DryRun::default(),
        }
    }

    /// Counts a policy that guards the destination.
    pub(crate) fn add(&mut self, policy: &'a Authorization) {
        if policy.dry_run {
            return self.add_dry_run(policy);
        }
        match policy.action {
            Action::Deny => {
                if self.denied_by.is_none() && policy.matches(&self.facts) {
                    self.denied_by = Some(&policy.key);
                }
            }
            Action::Allow => {
                self.has_allow = true;
                if self.allowed_by.is_none() && policy.matches(&self.facts) {
                    self.allowed_by = Some(&policy.key);
                }
            }
        }
    }

    /// Counts a policy that the destination refers to and that is not there.
    pub(crate) fn add_unknown(&mut self, key: &'a PolicyKey) {
        self.unknown.get_or_insert(key);
    }

    fn add_dry_run(&mut self, policy: &'a Authorization) {
        if policy.matches(&self.facts) {
            self.dry_run.matched.push(DryRunMatch {
                policy: policy.key.clone(),
                would: policy.action,
            });
        } else if policy.action == Action::Allow {
            self.dry_run.unmatched_allow.push(&policy.key);
        }
    }

    pub(crate) fn verdict(self) -> Verdict {
        let decision = if let Some(key) = self.denied_by {
            Decision::Deny {
                policy: Some(key.clone()),
                why: DenyReason::MatchedDeny,
            }
        } else if let Some(key) = self.unknown {
            Decision::Deny {
                policy: Some(key.clone()),
                why: DenyReason::UnknownPolicy,
            }
        } else if self.has_allow && self.allowed_by.is_none() {
            Decision::Deny {
                policy: None,
                why: DenyReason::NoAllowMatched,
            }
        } else {
            Decision::Allow {
                policy: self.allowed_by.cloned(),
            }
        };
        let DryRun {
            matched: mut dry_run,
            unmatched_allow,
        } = self.dry_run;
        if self.allowed_by.is_none() && !dry_run.iter().any(|other| other.would == Action::Allow) {
            let omitted = unmatched_allow.into_iter().cloned();
            dry_run.extend(omitted.map(|policy| DryRunMatch {
                policy,
                would: Action::Deny,
            }));
        }
        Verdict { decision, dry_run }
    }
}

#[cfg(test)]
mod tests;
