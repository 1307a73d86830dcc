//! Nodes that are waypoints besides: their own pods' requests are served where they were captured.

use underpass_tests::{AccessLine, Proxy, wait};

use super::server::{Server, get};
use super::{GATEWAY, gateway, service, tell_of_web, web};
use crate::nodes::Nodes;
use crate::place::PORT;

const ROUTES: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {namespace: shop, name: web}
spec:
  host: web.shop.svc.cluster.local
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {namespace: shop, name: web}
spec:
  hosts: [web.shop.svc.cluster.local]
  http:
  - match: [{uri: {prefix: /a/}}]
    route: [{destination: {host: web.shop.svc.cluster.local, subset: v1}}]
  - match: [{uri: {prefix: /b/}}]
    route: [{destination: {host: web.shop.svc.cluster.local, subset: v2}}]
  - directResponse: {status: 404}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: web}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
";

/// The line of a request, in the log of who served it.
fn line(proxy: &Proxy, path: &str) -> AccessLine {
    wait::some(wait::SOON, "the request's line", || {
        let mut lines = proxy.access_lines().into_iter();
        lines.find(|line| line.text.contains(path))
    })
}

#[test]
fn requests_are_served_by_the_node_of_their_client_and_nowhere_else() {
    let Some(nodes) = Nodes::start_as_waypoints(GATEWAY) else {
        return;
    };
    nodes.istiod.apply("waypoint", gateway("istio-system"));
    tell_of_web(&nodes, "istio-system");
    nodes
        .istiod
        .apply("v2", service("web-v2", "10.96.0.82", "app: web, version: v2"));
    let _servers = [&nodes.a, &nodes.b].map(|side| Server::start(&side.web, PORT, side.web.name()));
    nodes.istiod.apply("routes", ROUTES);
    for (near, far, letter) in [(&nodes.a, &nodes.b, "a"), (&nodes.b, &nodes.a, "b")] {
        let ask = |path: &str| get(&near.client, web(), path, &[]);
        // istiod may tell of a subset before it has seen the labels of its pods.
        wait::eventually(2 * wait::SOON, "the routes are there, and lead to somebody", || {
            let status = |path| ask(path).map_or(0, |answer| answer.status);
            status("/none") == 404 && status("/a/") == 200 && status("/b/") == 200
        });
        for (to, pod) in [("a", "shop/web-a"), ("b", "shop/web-b")] {
            let path = format!("/{to}/by-{letter}");
            let answer = ask(&path).expect("answered");
            assert_eq!((answer.status, answer.pod()), (200, pod), "{path}: {answer:?}");
            let line = line(&near.proxy, &path);
            assert!(line.text.contains("\"listener\":\"waypoint\""), "{}", line.text);
            assert!(
                line.text.contains("spiffe://cluster.local/ns/shop/sa/client"),
                "{}",
                line.text
            );
            let elsewhere = far.proxy.access_lines();
            let elsewhere = elsewhere.iter().find(|line| line.text.contains(&path));
            assert!(elsewhere.is_none(), "another waypoint has served it: {elsewhere:?}");
        }
        let other = get(&near.other, web(), "/a/", &[]).expect("answered");
        assert_eq!(other.status, 403, "{other:?}");
    }
    let status = nodes.a.proxy.status();
    for stream in ["istiod", "istiod_for_waypoint"] {
        assert_eq!(status[stream]["state"], "connected", "{status}");
    }
}
