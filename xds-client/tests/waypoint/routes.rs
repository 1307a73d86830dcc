//! What users wrote as VirtualService, HTTPRoute and GRPCRoute, as they would say what it does.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use underpass_config::http::{
    Abort, Delay, Forward, HashSource, RequestView, Route, RouteAction, RouteTable, UpstreamProtocol,
};

use crate::{SERVER, SERVER_TCP, held, table, tcp};

const HOST: &str = "server.shop.svc.cluster.local";
const V1: &str = "inbound-vip|80|http/v1|server.shop.svc.cluster.local";
const V2: &str = "inbound-vip|80|http/v2|server.shop.svc.cluster.local";
const SERVER_V2: &str = "inbound-vip|80|http|server-v2.shop.svc.cluster.local";

fn asked(table: &RouteTable, path: &str, headers: &[(&'static str, &str)]) -> Arc<Route> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(path, query)| (path, Some(query)));
    let view = RequestView {
        method: "GET",
        scheme: "http",
        authority: HOST,
        path,
        query,
        headers: &headers,
    };
    let (_, route) = table.route(&view, 0).unwrap_or_else(|| panic!("no route for {path}"));
    route.clone()
}

fn forward(route: &Route) -> &Forward {
    match &route.action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn split(forward: &Forward) -> Vec<(&str, u32)> {
    forward
        .clusters()
        .iter()
        .map(|one| (&*one.cluster, one.weight))
        .collect()
}

#[test]
fn a_canary_needs_all_that_its_match_says() {
    let table = table(&held("05-traffic-management"), SERVER);
    let all: &[(&'static str, &str)] = &[
        ("x-canary", "true"),
        ("x-stage", "beta-3"),
        ("x-id", "42"),
        ("x-present", "whatever"),
    ];
    let path = "/api/x?v=2&r=abcx";
    let route = asked(&table, path, all);
    assert_eq!(&*route.name, "canary-header");
    assert_eq!(split(forward(&route)), [(V2, 1)]);
    for missing in 0..all.len() {
        let mut some = all.to_vec();
        some.remove(missing);
        assert_eq!(
            &*asked(&table, path, &some).name,
            "default",
            "without {:?}",
            all[missing]
        );
    }
    let mut never = all.to_vec();
    never.push(("x-never", "1"));
    assert_eq!(&*asked(&table, path, &never).name, "default");
    for path in ["/api/x?v=2", "/api/x?v=3&r=abcx", "/other?v=2&r=abcx"] {
        assert_eq!(&*asked(&table, path, all).name, "default", "{path}");
    }
    assert_eq!(split(forward(&asked(&table, "/CANARY", &[]))), [(V2, 1)]);
}

#[test]
fn rewrites_redirects_and_answers() {
    let table = table(&held("05-traffic-management"), SERVER);
    let rewrite = asked(&table, "/old/page", &[]);
    let old = forward(&rewrite);
    assert_eq!(
        old.path.apply(&rewrite.matches, "/old/page").as_deref(),
        Some("/new/page")
    );
    assert_eq!(old.host.as_ref().unwrap(), "new.example.com");
    assert_eq!(split(old), [(V1, 1)]);
    let regex = asked(&table, "/rx/a/b/c", &[]);
    assert_eq!(
        forward(&regex).path.apply(&regex.matches, "/rx/a/b/c").as_deref(),
        Some("/b/c/a")
    );
    match &asked(&table, "/moved", &[]).action {
        RouteAction::Redirect(to) => {
            assert_eq!(to.status, StatusCode::FOUND);
            let headers = HeaderMap::new();
            let view = RequestView {
                method: "GET",
                scheme: "http",
                authority: HOST,
                path: "/moved",
                query: None,
                headers: &headers,
            };
            let location = to.location(&asked(&table, "/moved", &[]).matches, &view);
            assert_eq!(location, "https://elsewhere.example.com:8443/here");
        }
        other => panic!("{other:?}"),
    }
    match &asked(&table, "/teapot", &[]).action {
        RouteAction::Direct(answer) => {
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (418, "short and stout"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_split_has_its_weights_retries_faults_and_copies() {
    let table = table(&held("05-traffic-management"), SERVER);
    let route = asked(&table, "/split/x", &[]);
    let forward = forward(&route);
    assert_eq!(split(forward), [(V1, 90), (V2, 10)]);
    assert_eq!(forward.clusters()[1].request_headers.edits[0].name, "x-branch");
    assert_eq!(forward.timeout, Some(Duration::from_secs(5)));
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!(
        (retry.retries, retry.per_try_timeout),
        (3, Some(Duration::from_secs(1)))
    );
    assert_eq!(retry.base_interval, Duration::from_millis(50));
    assert!(retry.on.server_error && retry.on.reset && retry.on.retriable_4xx && !retry.on.connect_failure);
    assert_eq!(retry.on.statuses, [StatusCode::SERVICE_UNAVAILABLE]);
    assert!(!retry.other_endpoints, "the user does not want others");
    let fault = forward.fault.as_ref().unwrap();
    assert_eq!(fault.delay, Some((Delay::Fixed(Duration::from_secs(2)), 100_000)));
    assert_eq!(fault.abort, Some((Abort::Http(StatusCode::SERVICE_UNAVAILABLE), 5_000)));
    assert_eq!(forward.mirrors.len(), 1);
    assert_eq!(
        (&*forward.mirrors[0].cluster, forward.mirrors[0].share),
        (SERVER_V2, 250_000)
    );
    let cors = forward.cors.as_ref().unwrap();
    for (origin, expected) in [
        ("https://a.example.com", true),
        ("https://b.anything", true),
        ("https://x.c.com", true),
        ("https://a.example.org", false),
    ] {
        assert_eq!(cors.origins.has(origin), expected, "{origin}");
    }
    assert!(cors.lets_credentials() && !cors.forwards_unmatched());
    assert_eq!(cors.max_age.as_ref().unwrap(), "86400");
    let hashed: Vec<_> = forward
        .hash
        .iter()
        .map(|policy| format!("{:?}", policy.source))
        .collect();
    assert_eq!(
        hashed.len(),
        1,
        "only one of its destinations goes by a hash: {hashed:?}"
    );
    let two = asked(&table, "/two-hashes", &[]);
    let RouteAction::Forward(two) = &two.action else {
        panic!("{two:?}")
    };
    assert_eq!(two.hash.len(), 2);
    assert!(matches!(two.hash[0].source, HashSource::Header(_)));
}

#[test]
fn what_nobody_says_is_what_istio_does() {
    let table = table(&held("01-baseline"), SERVER);
    let route = asked(&table, "/", &[]);
    let forward = forward(&route);
    assert_eq!(split(forward), [(SERVER, 1)]);
    assert_eq!((forward.timeout, forward.idle_timeout), (None, None));
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.refused_stream && !retry.on.server_error);
    assert_eq!(retry.on.grpc, [14, 1]);
    assert_eq!((retry.retries, retry.other_endpoints), (2, true));
    assert!(forward.grpc_timeout.is_some(), "clients of gRPC say how long they wait");
    assert_eq!(forward.upgrades, ["websocket"]);
    assert_eq!(forward.not_found, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn routes_of_the_gateway_api() {
    let held = held("06-gateway-api");
    let table = table(&held, SERVER);
    let wanted = [("x-env", "prod"), ("x-re", "abc")];
    let route = asked(&table, "/api/x?q=1", &wanted);
    assert_eq!(
        split(forward(&route)),
        [
            ("inbound-vip|80|http|server-v1.shop.svc.cluster.local", 90),
            (SERVER_V2, 10)
        ]
    );
    assert_eq!(forward(&route).timeout, Some(Duration::from_secs(10)));
    let retry = forward(&route).retry.as_ref().unwrap();
    assert_eq!(
        (retry.retries, retry.per_try_timeout),
        (3, Some(Duration::from_secs(2)))
    );
    assert_eq!(
        retry.on.statuses,
        [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE]
    );
    assert_eq!(forward(&route).mirrors[0].share, 500_000);
    assert_eq!(
        split(forward(&asked(&table, "/apis?q=1", &wanted))),
        [(SERVER, 1)],
        "a segment is whole"
    );
    let rewrite = asked(&table, "/rewrite/a", &[]);
    let rewritten = forward(&rewrite).path.apply(&rewrite.matches, "/rewrite/a");
    assert_eq!(rewritten.as_deref(), Some("/a"));
    match &asked(&table, "/zero", &[]).action {
        RouteAction::Direct(answer) => assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR),
        other => panic!("{other:?}"),
    }
    let missing = asked(&table, "/missing", &[]);
    assert_eq!(forward(&missing).not_found, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!held.clusters.contains_key(&forward(&missing).clusters()[0].cluster));
    let tcp = tcp(&held, SERVER_TCP);
    let shares: Vec<_> = tcp.clusters.iter().map(|one| (&*one.cluster, one.weight)).collect();
    assert_eq!(
        shares,
        [
            (SERVER_TCP, 3),
            ("inbound-vip|80|http|server-v1.shop.svc.cluster.local", 1)
        ]
    );
    let grpc = "inbound-vip|9090|http|grpc.shop.svc.cluster.local";
    let grpc = held
        .clusters
        .keys()
        .find(|name| name.contains("grpc.shop"))
        .unwrap_or_else(|| panic!("no {grpc}"));
    let cluster = held.clusters[grpc].served.as_ref().unwrap();
    assert_eq!(cluster.settings.protocol, UpstreamProtocol::Http2);
}

#[test]
fn weights_of_tcp() {
    let held = held("05-traffic-management");
    let tcp = tcp(&held, SERVER_TCP);
    let shares: Vec<_> = tcp.clusters.iter().map(|one| (&*one.cluster, one.weight)).collect();
    assert_eq!(
        shares,
        [
            ("inbound-vip|9000|tcp/v1|server.shop.svc.cluster.local", 70),
            ("inbound-vip|9000|tcp/v2|server.shop.svc.cluster.local", 30)
        ]
    );
    assert!(tcp.rules.is_empty());
}
