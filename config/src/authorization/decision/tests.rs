//! How the policies of a destination decide together, as the mesh selects them.

use super::*;
use crate::samples::{any_of, identity, ip, mesh, policy, policy_key, workload};
use crate::{Authorization, ConnectionFacts, Match, Mesh, MeshChange, PolicyScope, StringMatch};

fn from_client() -> Match {
    Match {
        principals: vec![StringMatch::Suffix("/sa/client".into())],
        ..Match::default()
    }
}

fn from_nobody() -> Match {
    Match {
        principals: vec![StringMatch::Suffix("/sa/nobody".into())],
        ..Match::default()
    }
}

fn allow(name: &str, one: Match) -> Authorization {
    Authorization {
        groups: any_of([one]),
        ..policy(name, Action::Allow)
    }
}

fn deny(name: &str, one: Match) -> Authorization {
    Authorization {
        groups: any_of([one]),
        ..policy(name, Action::Deny)
    }
}

fn dry_run(policy: Authorization) -> Authorization {
    Authorization {
        dry_run: true,
        ..policy
    }
}

fn with_policies(policies: impl IntoIterator<Item = Authorization>) -> Mesh {
    mesh(policies.into_iter().map(MeshChange::Policy))
}

/// The verdict for shop/client on its way to port 80 of a workload of `shop` that refers to `names`.
fn verdict(mesh: &Mesh, names: &[&str]) -> Verdict {
    let mut server = workload("server", &["10.0.1.1"]);
    server.authorization_policies = names.iter().map(|name| policy_key(name)).collect();
    let source = identity("cluster.local", "shop", "client");
    let facts = ConnectionFacts {
        source: Some(&source),
        source_ip: ip("10.0.0.1"),
        destination: "10.0.1.1:80".parse().unwrap(),
    };
    mesh.authorize(&facts, &server)
}

fn allowed(by: Option<&str>) -> Decision {
    Decision::Allow {
        policy: by.map(policy_key),
    }
}

fn denied(by: Option<&str>, why: DenyReason) -> Decision {
    Decision::Deny {
        policy: by.map(policy_key),
        why,
    }
}

#[test]
fn deny_goes_before_allow_and_allow_before_nothing() {
    use DenyReason::{MatchedDeny, NoAllowMatched, UnknownPolicy};
    let mesh = with_policies([
        allow("allow-client", from_client()),
        allow("allow-nobody", from_nobody()),
        policy("allow-nothing", Action::Allow),
        deny("deny-client", from_client()),
        deny("deny-nobody", from_nobody()),
        policy("deny-nothing", Action::Deny),
    ]);
    let rows: [(&[&str], Decision); 14] = [
        (&[], allowed(None)),
        (&["allow-client"], allowed(Some("allow-client"))),
        (&["allow-nobody"], denied(None, NoAllowMatched)),
        (&["allow-nothing"], denied(None, NoAllowMatched)),
        (&["allow-nothing", "allow-client"], allowed(Some("allow-client"))),
        (&["allow-nobody", "allow-client"], allowed(Some("allow-client"))),
        (&["deny-client"], denied(Some("deny-client"), MatchedDeny)),
        (&["deny-nobody"], allowed(None)),
        (&["deny-nothing"], allowed(None)),
        (
            &["allow-client", "deny-client"],
            denied(Some("deny-client"), MatchedDeny),
        ),
        (&["allow-client", "deny-nobody"], allowed(Some("allow-client"))),
        (
            &["allow-nothing", "deny-client"],
            denied(Some("deny-client"), MatchedDeny),
        ),
        (&["allow-client", "not-there"], denied(Some("not-there"), UnknownPolicy)),
        (&["not-there", "deny-client"], denied(Some("deny-client"), MatchedDeny)),
    ];
    for (names, expected) in rows {
        assert_eq!(verdict(&mesh, names).decision, expected, "{names:?}");
    }
}

#[test]
fn scopes_select_the_destinations_that_a_policy_guards() {
    let in_scope = |name: &str, namespace: &str, scope| Authorization {
        namespace: namespace.into(),
        scope,
        ..deny(name, from_client())
    };
    let rows = [
        (in_scope("p", "istio-system", PolicyScope::Global), &[][..], true),
        (in_scope("p", "shop", PolicyScope::Namespace), &[], true),
        (in_scope("p", "bank", PolicyScope::Namespace), &[], false),
        (in_scope("p", "shop", PolicyScope::WorkloadSelector), &[], false),
        (in_scope("p", "shop", PolicyScope::WorkloadSelector), &["p"], true),
        (
            in_scope("p", "istio-system", PolicyScope::WorkloadSelector),
            &["p"],
            true,
        ),
        (in_scope("p", "bank", PolicyScope::Namespace), &["p"], true), // referred to: the stricter reading
    ];
    for (policy, names, expected) in rows {
        let what = format!("{:?} of {}, referred to by {names:?}", policy.scope, policy.namespace);
        assert_eq!(
            !verdict(&with_policies([policy]), names).decision.is_allowed(),
            expected,
            "{what}"
        );
    }
}

#[test]
fn an_allow_policy_of_any_scope_closes_what_it_guards() {
    for scope in [PolicyScope::Global, PolicyScope::Namespace] {
        let nobody = Authorization {
            scope,
            ..allow("nobody", from_nobody())
        };
        let mesh = with_policies([nobody, allow("client", from_client())]);
        assert_eq!(
            verdict(&mesh, &[]).decision,
            denied(None, DenyReason::NoAllowMatched),
            "{scope:?}"
        );
        assert_eq!(
            verdict(&mesh, &["client"]).decision,
            allowed(Some("client")),
            "{scope:?}"
        );
    }
}

#[test]
fn a_replaced_or_removed_policy_guards_no_longer() {
    let global = Authorization {
        scope: PolicyScope::Global,
        ..deny("p", from_client())
    };
    let of_namespace = Authorization {
        scope: PolicyScope::Namespace,
        ..deny("p", from_client())
    };
    let selector = deny("p", from_client());
    for old in [global, of_namespace] {
        let mut mesh = with_policies([old.clone()]);
        assert!(!verdict(&mesh, &[]).decision.is_allowed());
        mesh.apply([MeshChange::Policy(selector.clone())]);
        assert_eq!(verdict(&mesh, &[]).decision, allowed(None));
        mesh.apply([MeshChange::Policy(old.clone())]);
        assert!(!verdict(&mesh, &[]).decision.is_allowed());
        mesh.apply([MeshChange::RemovePolicy(old.key.clone())]);
        assert_eq!(verdict(&mesh, &[]).decision, allowed(None));
    }
}

#[test]
fn dry_run_policies_never_decide_and_tell_what_they_would_have_done() {
    let would = |name: &str, would| DryRunMatch {
        policy: policy_key(name),
        would,
    };
    let mesh = with_policies([
        allow("allow-client", from_client()),
        dry_run(allow("try-allow-client", from_client())),
        dry_run(allow("try-allow-nobody", from_nobody())),
        dry_run(policy("try-allow-nothing", Action::Allow)),
        dry_run(deny("try-deny-client", from_client())),
        dry_run(deny("try-deny-nobody", from_nobody())),
    ]);
    let rows: [(&[&str], Option<&str>, Vec<DryRunMatch>); 8] = [
        (&["allow-client"], Some("allow-client"), vec![]),
        (&["try-deny-client"], None, vec![would("try-deny-client", Action::Deny)]),
        (&["try-deny-nobody"], None, vec![]),
        (
            &["try-allow-client"],
            None,
            vec![would("try-allow-client", Action::Allow)],
        ),
        (
            &["try-allow-nobody"],
            None,
            vec![would("try-allow-nobody", Action::Deny)],
        ),
        (
            &["try-allow-nothing", "try-allow-client"],
            None,
            vec![would("try-allow-client", Action::Allow)],
        ),
        (&["try-allow-nobody", "allow-client"], Some("allow-client"), vec![]),
        (
            &["try-deny-client", "allow-client", "try-allow-client"],
            Some("allow-client"),
            vec![
                would("try-deny-client", Action::Deny),
                would("try-allow-client", Action::Allow),
            ],
        ),
    ];
    for (names, by, dry_run) in rows {
        assert_eq!(
            verdict(&mesh, names),
            Verdict {
                decision: allowed(by),
                dry_run
            },
            "{names:?}"
        );
    }
}

#[test]
fn a_policy_is_counted_once_however_often_it_guards() {
    let global = Authorization {
        scope: PolicyScope::Global,
        ..dry_run(deny("p", from_client()))
    };
    let verdict = verdict(&with_policies([global]), &["p"]);
    assert_eq!(verdict.dry_run.len(), 1);
}
