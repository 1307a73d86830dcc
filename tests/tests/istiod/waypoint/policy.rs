//! Who may ask what, as a user writes it for a service.

use super::server::get;
use super::{Mesh, web};

/// A policy for the service `shop/web`.
fn policy(name: &str, rest: &str) -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: shop, name: {name}}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
{rest}
"
    )
}

#[test]
fn policies_for_a_service_decide_by_whom_and_by_what_is_asked() {
    let Some(mesh) = Mesh::start() else { return };
    let other = &mesh.nodes.b.other;
    mesh.apply(
        "allow",
        &policy(
            "allow",
            "  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {paths: [/open/*]}}]
  - from: [{source: {namespaces: [else]}}]
    to: [{operation: {paths: [/theirs], methods: [GET]}}]",
        ),
    );
    mesh.wait_for("/closed", "is denied", |answer| {
        answer.status == 403 && answer.body == "RBAC: access denied"
    });
    let status = |host, path: &str| get(host, web(), path, &[]).expect("answered").status;
    for (path, of_client, of_other) in [
        ("/open/a", 200, 403),
        ("/open/../closed", 403, 403),
        ("/open/%2e%2e/closed", 403, 403),
        ("//open/a", 403, 403),
        ("/theirs", 403, 200),
        ("/theirs/a", 403, 403),
    ] {
        let found = (status(mesh.client(), path), status(other, path));
        assert_eq!(found, (of_client, of_other), "{path}");
    }
    let deny = policy(
        "deny",
        "  action: DENY\n  rules: [{to: [{operation: {paths: [/open/secret]}}]}]",
    );
    mesh.apply("deny", &deny);
    mesh.wait_for("/open/secret", "is denied, too", |answer| answer.status == 403);
    assert_eq!(status(mesh.client(), "/open/a"), 200);
    mesh.nodes.istiod.delete("allow");
    mesh.wait_for("/closed", "is let through", |answer| answer.status == 200);
    assert_eq!(status(mesh.client(), "/open/secret"), 403, "another policy denies it");
}

/// Mutant: a waypoint that is not asked: the endpoint's node lets who is not the waypoint through only by what its own policies say.
#[test]
fn an_endpoint_sees_the_waypoint_as_its_client() {
    let Some(mesh) = Mesh::start() else { return };
    let only = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/ACCOUNT]}}]}]
";
    mesh.apply("only", &only.replace("ACCOUNT", "nobody"));
    mesh.wait_for("/", "endpoints refuse", |answer| answer.status == 503);
    mesh.apply("only", &only.replace("ACCOUNT", "waypoint"));
    mesh.wait_for("/", "endpoints let the waypoint in", |answer| answer.status == 200);
    let direct = (mesh.nodes.b.web.ip(), crate::place::PORT).into();
    assert!(
        get(mesh.client(), direct, "/", &[]).is_err(),
        "the client itself is not let in"
    );
}
