//! Requests with tokens, as a user asks for them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use underpass_tests::tokens::{By, Issuer};

use super::server::get;
use super::{Mesh, web};

/// Tokens of one issuer, by the key set `keys`; with none a request is anybody's, and only the group `staff` may ask for `/staff/`.
fn objects(keys: &str) -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{namespace: shop, name: web}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  jwtRules:
  - issuer: https://issuer.test
    jwks: '{keys}'
    outputClaimToHeaders: [{{header: x-team, claim: team}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: shop, name: web}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  action: ALLOW
  rules:
  - to: [{{operation: {{notPaths: [/staff/*]}}}}]
  - from: [{{source: {{requestPrincipals: [https://issuer.test/*]}}}}]
    when: [{{key: 'request.auth.claims[groups]', values: [staff]}}]
"
    )
}

#[test]
fn a_token_says_who_asks_and_a_wrong_one_is_refused() {
    let Some(mesh) = Mesh::start() else { return };
    let (issuer, other) = (Issuer::new(), Issuer::new());
    mesh.apply("tokens", &objects(&issuer.jwks().to_string()));
    mesh.wait_for("/staff/", "needs a token", |answer| answer.status == 403);
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600;
    let claims = |groups: &[&str], exp: u64| json!({"iss": "https://issuer.test", "sub": "anna", "groups": groups, "team": "blue", "exp": exp});
    let of_staff = issuer.token(By::Rs256, &claims(&["staff"], until));
    for (path, token, status) in [
        ("/", None, 200),
        ("/staff/", None, 403),
        ("/staff/", Some(of_staff.clone()), 200),
        (
            "/staff/",
            Some(issuer.token(By::Es256, &claims(&["guests"], until))),
            403,
        ),
        (
            "/staff/",
            Some(issuer.token(By::Rs256, &claims(&["staff"], until - 7200))),
            401,
        ),
        ("/", Some(other.token(By::Rs256, &claims(&["staff"], until))), 401),
        ("/", Some("no.token.atall".to_owned()), 401),
    ] {
        let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let answer = get(mesh.client(), web(), path, &headers).expect("answered");
        assert_eq!(answer.status, status, "{path} {token:?}: {answer:?}");
    }
    let bearer = format!("Bearer {of_staff}");
    let headers = [("authorization", bearer.as_str()), ("x-team", "forged")];
    let answer = get(mesh.client(), web(), "/staff/", &headers).expect("answered");
    let told: Vec<_> = answer
        .asked()
        .into_iter()
        .filter(|line| line.starts_with("x-team"))
        .collect();
    assert_eq!(told, ["x-team: blue"], "{answer:?}");
}
