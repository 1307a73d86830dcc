//! What a user writes of routes takes effect in the waypoint.

use underpass_tests::wait;

use super::server::get;
use super::{Mesh, service, web};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// Versions of the service's pods.
const SUBSETS: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {namespace: shop, name: web}
spec:
  host: web.shop.svc.cluster.local
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";

/// A virtual service whose routes, before one that leads to all pods, are these.
fn routes(before: &str) -> String {
    format!(
        "{SUBSETS}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{namespace: shop, name: web}}
spec:
  hosts: [web.shop.svc.cluster.local]
  http:
{before}
  - headers: {{response: {{add: {{x-route: last}}}}}}
    route: [{{destination: {{host: web.shop.svc.cluster.local}}}}]
"
    )
}

#[test]
fn requests_to_a_service_go_through_its_waypoint_as_whom_they_are_of() {
    let Some(mesh) = Mesh::start() else { return };
    let answer = mesh.get("/who").expect("answered");
    assert_eq!(answer.status, 200);
    assert!(answer.pod().starts_with("shop/web-"), "{answer:?}");
    assert!(answer.header("x-envoy-upstream-service-time").is_some(), "{answer:?}");
    let line = wait::some(wait::SOON, "the waypoint's line", || {
        let mut lines = mesh.waypoint.access_lines().into_iter();
        lines.find(|line| line.text.contains("/who"))
    });
    assert!(line.text.contains(CLIENT), "{}", line.text);
    let status = mesh.waypoint.status();
    assert_eq!(status["istiod"]["rejected_count"], 0, "{status}");
}

#[test]
fn a_virtual_service_says_what_becomes_of_which_requests() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply(
        "routes",
        &routes(
            "
  - match: [{uri: {prefix: /old/}, headers: {x-user: {exact: anna}}}]
    rewrite: {uri: /new/}
    headers: {request: {set: {x-added: a}, remove: [x-user]}, response: {add: {x-told: b}}}
    route: [{destination: {host: web.shop.svc.cluster.local, subset: v2}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /there, redirectCode: 302}
  - match: [{uri: {exact: /direct}}]
    directResponse: {status: 418, body: {string: tea}}
  - match: [{uri: {prefix: /broken}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 555}}
    route: [{destination: {host: web.shop.svc.cluster.local}}]
  - match: [{uri: {prefix: /flaky/}}]
    retries: {attempts: 2, retryOn: 5xx}
    route: [{destination: {host: web.shop.svc.cluster.local}}]
  - match: [{uri: {prefix: /late/}}]
    timeout: 0.2s
    route: [{destination: {host: web.shop.svc.cluster.local}}]
  - match: [{uri: {prefix: /one/}}]
    route: [{destination: {host: web.shop.svc.cluster.local, subset: v1}}]
  - match: [{uri: {prefix: /split/}}]
    route:
    - {destination: {host: web.shop.svc.cluster.local, subset: v1}, weight: 25}
    - {destination: {host: web.shop.svc.cluster.local, subset: v2}, weight: 75}",
        ),
    );
    mesh.wait_for("/", "the routes are there", |answer| {
        answer.header("x-route") == Some("last")
    });

    let anna = get(mesh.client(), web(), "/old/a?b", &[("x-user", "anna")]).expect("answered");
    assert_eq!(
        (anna.pod(), anna.header("x-told")),
        ("shop/web-b", Some("b")),
        "{anna:?}"
    );
    assert!(anna.asked()[0].starts_with("GET /new/a?b "), "{anna:?}");
    let asked = |line: &str| anna.asked().iter().any(|known| known.eq_ignore_ascii_case(line));
    assert!(asked("x-added: a") && !asked("x-user: anna"), "{anna:?}");
    let nobody = mesh.get("/old/a").expect("answered");
    assert_eq!(nobody.header("x-route"), Some("last"));
    assert!(nobody.asked()[0].starts_with("GET /old/a "), "{nobody:?}");

    let moved = mesh.get("/moved").expect("answered");
    assert_eq!(
        (moved.status, moved.header("location")),
        (302, Some("http://web/there")),
        "{moved:?}"
    );
    let direct = mesh.get("/direct").expect("answered");
    assert_eq!((direct.status, &*direct.body), (418, "tea"), "{direct:?}");
    assert_eq!(mesh.get("/broken").expect("answered").status, 555);

    let flaky = mesh.get("/flaky/once").expect("answered");
    assert_eq!(flaky.status, 200, "tried again: {flaky:?}");
    assert_eq!(mesh.get("/late/").expect("answered").status, 504);

    let mut of_second = 0;
    for _ in 0..200 {
        assert_eq!(mesh.get("/one/").expect("answered").pod(), "shop/web-a");
        of_second += usize::from(mesh.get("/split/").expect("answered").pod() == "shop/web-b");
    }
    // 150 expected, with a deviation of 6: eight of them.
    assert!((100..200).contains(&of_second), "{of_second} of 200");

    mesh.nodes.istiod.delete("routes");
    mesh.wait_for("/direct", "the routes are gone", |answer| answer.status == 200);
}

#[test]
fn routes_of_the_gateway_api_lead_to_other_services() {
    let Some(mesh) = Mesh::start() else { return };
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: web}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /second}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: second}]}}
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /two}}}
    backendRefs: [{group: '', kind: Service, name: web-v2, port: 80, weight: 1}]
  - matches: [{path: {type: Exact, value: /missing}}]
    backendRefs: [{group: '', kind: Service, name: nobody, port: 80, weight: 1}]
  - matches: [{path: {type: PathPrefix, value: /}, headers: [{name: x-version, type: Exact, value: one}]}]
    backendRefs: [{group: '', kind: Service, name: web-v1, port: 80, weight: 1}]
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{group: '', kind: Service, name: web, port: 80, weight: 1}]
";
    mesh.apply("v1", &service("web-v1", "10.96.0.81", "app: web, version: v1"));
    mesh.apply("v2", &service("web-v2", "10.96.0.82", "app: web, version: v2"));
    mesh.apply("route", route);
    mesh.wait_for("/second/a", "leads to the second version", |answer| {
        answer.pod() == "shop/web-b" && answer.asked()[0].starts_with("GET /two/a ")
    });
    let second = mesh.get("/second/a").expect("answered");
    assert!(second.asked()[0].starts_with("GET /two/a "), "{second:?}");
    assert!(
        second
            .asked()
            .iter()
            .any(|line| line.eq_ignore_ascii_case("x-route: second"))
    );
    for _ in 0..20 {
        let one = get(mesh.client(), web(), "/", &[("x-version", "one")]).expect("answered");
        assert_eq!(one.pod(), "shop/web-a");
    }
    assert_eq!(mesh.get("/missing").expect("answered").status, 500);
    assert_eq!(mesh.get("/").expect("answered").status, 200);
}
