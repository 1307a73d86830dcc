//! L4 authorization with Istio's semantics: `istio.security.Authorization`, as ztunnel enforces it.
//!
//! A policy is an OR of groups; a group an AND of rules; a rule an OR of matches; a match an AND of fields; and a field
//! holds if any of its positive values holds and none of its negative ones. What empty means at each level is easy to
//! get wrong, and wrong is a hole, so it is written down once, here:
//!
//! | empty            | meaning                                             | why                              |
//! |------------------|-----------------------------------------------------|----------------------------------|
//! | policy (groups)  | matches nothing; as ALLOW it so denies everything   | Istio's allow-nothing policy     |
//! | group (rules)    | matches                                             | an AND of nothing                |
//! | rule (matches)   | matches                                             | the clause was not given         |
//! | match (fields)   | matches in DENY, not in ALLOW                       | see below; both ways fail closed |
//! | field (values)   | holds                                               | the field was not given          |
//!
//! An empty match is what istiod leaves of a DENY rule whose attributes are all L7, so that it "will always match, so
//! it is more restrictive" (`handleRule` in its `ambient/authorization.go`). ztunnel skips empty matches in both
//! actions, and so does not enforce such a rule; we keep to what istiod means.
//!
//! A connection without an identity holds no positive matcher of identity, not even presence, and no negative one
//! matches it either: `not_principals: [presence]` in a DENY policy is how istiod writes STRICT mTLS.
//!
//! How a single policy matches is in `matching`; how policies together decide is in `decision`.

mod decision;
mod matching;

use ipnet::IpNet;
use serde::Serialize;

pub(crate) use decision::Tally;
pub use decision::{Decision, DenyReason, DryRunMatch, Verdict};
pub use matching::ConnectionFacts;
pub(crate) use matching::Facts;

use crate::{PolicyKey, Text};

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Authorization {
    /// Its name in the whole mesh.
    pub key: PolicyKey,
    /// Its namespace.
    pub namespace: Text,
    /// What it guards.
    pub scope: PolicyScope,
    /// What it does with connections that match.
    pub action: Action,
    /// If set, it never decides; what it would have done is reported.
    pub dry_run: bool,
    /// It matches if any of these does; none: nothing matches.
    pub groups: Vec<Group>,
}

/// Which workloads a policy guards, as destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PolicyScope {
    /// All.
    Global,
    /// All of the policy's namespace.
    Namespace,
    /// Those whose [`authorization_policies`](crate::Workload::authorization_policies) name it.
    WorkloadSelector,
}

/// What a policy does with connections that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Allows them; what no ALLOW policy of the destination matches is denied, if it has any.
    #[default]
    Allow,
    /// Denies them, whatever ALLOW policies say.
    Deny,
}

/// Matches if all its rules do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The clauses; none: the group matches.
    pub rules: Vec<Rule>,
}

/// Matches if any of its matches does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The alternatives; none: the rule matches.
    pub matches: Vec<Match>,
}

/// Matches if every field that is given holds: any of the field's values, and none of its `not_` values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The source's namespace.
    pub namespaces: Vec<StringMatch>,
    /// Namespaces the source must not have.
    pub not_namespaces: Vec<StringMatch>,
    /// The source's service account.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Service accounts the source must not have.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The source's principal ([`Identity::principal`](crate::Identity::principal)). A pattern may carry `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Principals the source must not have.
    pub not_principals: Vec<StringMatch>,
    /// The source's address.
    pub source_ips: Vec<IpNet>,
    /// Addresses the source must not have.
    pub not_source_ips: Vec<IpNet>,
    /// The endpoint's address.
    pub destination_ips: Vec<IpNet>,
    /// Addresses the endpoint must not have.
    pub not_destination_ips: Vec<IpNet>,
    /// The endpoint's port, not the service's.
    pub destination_ports: Vec<u16>,
    /// Ports the endpoint must not have.
    pub not_destination_ports: Vec<u16>,
}

/// A pattern for a text. Case matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StringMatch {
    /// The whole text.
    Exact(Text),
    /// Its beginning.
    Prefix(Text),
    /// Its end.
    Suffix(Text),
    /// Any text that is not empty.
    Presence,
}

/// A service account of a namespace; both must be the source's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Text,
    /// The service account's name in it.
    pub service_account: Text,
}

#[cfg(test)]
mod tests;
