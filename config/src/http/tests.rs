//! What requests are matched, sent and turned into.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::Config;

fn config(http: &str) -> Config {
    let yaml = format!("http:\n{http}");
    Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// The routes of one virtual host, in YAML, as `http.routes[0]`; `a` and `b` are clusters.
fn table(routes: &str) -> Arc<RouteTable> {
    let http = config(&format!(
        "  clusters: [{{name: a}}, {{name: b}}]\n  routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{routes}]}}]}}]"
    ))
    .http;
    http.tables["t"].clone()
}

/// `GET /path?query` with header fields.
struct Asked {
    method: &'static str,
    authority: &'static str,
    target: &'static str,
    headers: HeaderMap,
}

impl Asked {
    fn new(target: &'static str) -> Self {
        Self {
            method: "GET",
            authority: "web.example.com",
            target,
            headers: HeaderMap::new(),
        }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers
            .append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn view(&self) -> RequestView<'_> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target, None),
        };
        RequestView {
            method: self.method,
            scheme: "http",
            authority: self.authority,
            path,
            query,
            headers: &self.headers,
        }
    }

    fn is_matched_by(&self, matches: &str) -> bool {
        let table = table(&format!("{{match: {matches}, direct: {{status: 200}}}}"));
        table.route(&self.view(), 0).is_some()
    }
}

#[test]
fn paths_are_matched_as_envoy_matches_them() {
    let cases = [
        ("{path: /a}", "/a", true),
        ("{path: /a}", "/a?b", true),
        ("{path: /a}", "/a/", false),
        ("{prefix: /a}", "/ab", true),
        ("{prefix: /a/}", "/a", false),
        ("{segments: /a}", "/a", true),
        ("{segments: /a}", "/a/b?c", true),
        ("{segments: /a}", "/ab", false),
        ("{segments: /}", "/anything", true),
        ("{regex: '/[0-9]+'}", "/12", true),
        ("{regex: '/[0-9]+'}", "/12/x", false),
        ("{regex: '/a|/b'}", "/bc", false),
        ("{prefix: /A, case_sensitive: false}", "/ab", true),
        ("{path: /A}", "/a", false),
        ("{}", "/whatever", true),
    ];
    for (matches, target, expected) in cases {
        assert_eq!(
            Asked::new(target).is_matched_by(matches),
            expected,
            "{matches} {target}"
        );
    }
}

#[test]
fn headers_are_matched_as_envoy_matches_them() {
    let cases = [
        ("{x: a}", vec![("x", "a")], true),
        ("{x: a}", vec![], false),
        ("{x: a}", vec![("x", "b"), ("x", "a")], true),
        ("{x: {exact: a, invert: true}}", vec![("x", "b"), ("x", "a")], false),
        ("{x: {prefix: b}}", vec![("x", "beta")], true),
        ("{x: {suffix: a}}", vec![("x", "beta")], true),
        ("{x: {contains: et}}", vec![("x", "beta")], true),
        ("{x: {regex: 'b.*'}}", vec![("x", "beta")], true),
        ("{x: {regex: 'b'}}", vec![("x", "beta")], false),
        ("{x: {present: true}}", vec![("x", "")], true),
        ("{x: {present: true}}", vec![], false),
        ("{x: {present: false}}", vec![], true),
        ("{x: {exact: a, invert: true}}", vec![("x", "b")], true),
        // A missing field fulfils nothing, unless it is said to be empty.
        ("{x: {exact: a, invert: true}}", vec![], false),
        ("{x: {exact: a, invert: true, missing_is_empty: true}}", vec![], true),
        ("{':method': GET}", vec![], true),
        ("{':authority': web.example.com}", vec![], true),
        ("{':scheme': https}", vec![], false),
        ("{':path': '/p?q=1'}", vec![], true),
    ];
    for (headers, fields, expected) in cases {
        let asked = fields
            .iter()
            .fold(Asked::new("/p?q=1"), |asked, (name, value)| asked.with(name, value));
        let matches = format!("{{headers: {headers}}}");
        assert_eq!(asked.is_matched_by(&matches), expected, "{headers} {fields:?}");
    }
}

#[test]
fn query_parameters_are_matched_by_their_first_value() {
    let cases = [
        ("{v: '2'}", "/?v=2", true),
        ("{v: '2'}", "/?v=1&v=2", false),
        ("{v: '2'}", "/?vv=2", false),
        ("{v: {regex: '.*x'}}", "/?a=b&v=yx", true),
        ("{v: {present: true}}", "/?v", true),
        ("{v: {present: true}}", "/", false),
    ];
    for (query, target, expected) in cases {
        let matches = format!("{{query: {query}}}");
        assert_eq!(Asked::new(target).is_matched_by(&matches), expected, "{query} {target}");
    }
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let table = table(
        "{name: one, match: {prefix: /a}, direct: {status: 200}}, {name: two, match: {path: /a/b}, direct: {status: 200}}",
    );
    let asked = Asked::new("/a/b");
    let (_, route) = table.route(&asked.view(), 0).unwrap();
    assert_eq!(&*route.name, "one");
}

#[test]
fn the_most_telling_domain_decides() {
    let hosts = ["web.example.com", "*.example.com", "*.com", "web.*", "'*'", "'[::1]'"];
    let hosts: Vec<String> = hosts
        .iter()
        .map(|domain| format!("{{name: \"{}\", domains: [{domain}]}}", domain.trim_matches('\'')))
        .collect();
    let hosts = format!("  routes: [{{name: t, virtual_hosts: [{}]}}]", hosts.join(", "))
        .replace("domains: [*", "domains: ['*");
    let hosts = hosts
        .replace("'*.example.com]", "'*.example.com']")
        .replace("'*.com]", "'*.com']");
    let http = config(&hosts).http;
    let of = |authority: &str| {
        http.tables["t"]
            .virtual_host(authority)
            .map(|host| host.name.to_string())
            .unwrap()
    };
    for (authority, host) in [
        ("web.example.com", "web.example.com"),
        ("WEB.example.com:8080", "web.example.com"),
        ("api.example.com", "*.example.com"),
        (".example.com", "*.com"),
        ("example.com", "*.com"),
        ("web.test", "web.*"),
        ("web.", "*"),
        ("", "*"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
    ] {
        assert_eq!(of(authority), host, "{authority}");
    }
}

#[test]
fn paths_are_rewritten_and_queries_are_not() {
    let cases = [
        ("match: {prefix: /api}", "prefix_rewrite: /v2", "/api/x", Some("/v2/x")),
        ("match: {segments: /api}", "prefix_rewrite: /", "/api", Some("/")),
        ("match: {path: /api}", "prefix_rewrite: /v2", "/api", Some("/v2")),
        ("match: {}", "path_rewrite: /all", "/api/x", Some("/all")),
        (
            "match: {}",
            "regex_rewrite: {pattern: '^/user/([^/]+)(/.*)?$', substitution: '\\2/of/\\1'}",
            "/user/eve/list",
            Some("/list/of/eve"),
        ),
        (
            "match: {}",
            "regex_rewrite: {pattern: x, substitution: yy}",
            "/x/x",
            Some("/yy/yy"),
        ),
        ("match: {}", "timeout: 1s", "/x", None),
    ];
    for (matches, rewrite, path, expected) in cases {
        let table = table(&format!("{{{matches}, forward: {{cluster: a, {rewrite}}}}}"));
        let route = &table.virtual_hosts()[0].routes[0];
        let RouteAction::Forward(forward) = &route.action else {
            panic!("{route:?}")
        };
        assert_eq!(
            forward.path.apply(&route.matches, path).as_deref(),
            expected,
            "{rewrite}"
        );
    }
}

#[test]
fn clients_are_sent_where_the_redirect_says() {
    let cases = [
        ("{path: /new}", "/old?q=1", "http://web.example.com:8080/new?q=1"),
        ("{path: '/new?x'}", "/old?q=1", "http://web.example.com:8080/new?x"),
        ("{prefix: /new}", "/old/a", "http://web.example.com:8080/new/a"),
        ("{host: other}", "/old", "http://other/old"),
        ("{port: 81}", "/old", "http://web.example.com:81/old"),
        ("{scheme: https}", "/old", "https://web.example.com:8080/old"),
    ];
    for (redirect, target, expected) in cases {
        let table = table(&format!("{{match: {{prefix: /old}}, redirect: {redirect}}}"));
        let route = &table.virtual_hosts()[0].routes[0];
        let RouteAction::Redirect(redirect) = &route.action else {
            panic!("{route:?}")
        };
        let mut asked = Asked::new(target);
        asked.authority = "web.example.com:8080";
        assert_eq!(redirect.location(&route.matches, &asked.view()), expected);
    }
}

#[test]
fn the_port_of_the_old_scheme_does_not_follow_to_the_new_one() {
    let table = table("{match: {}, redirect: {scheme: https}}");
    let route = &table.virtual_hosts()[0].routes[0];
    let RouteAction::Redirect(redirect) = &route.action else {
        panic!("{route:?}")
    };
    let mut asked = Asked::new("/");
    asked.authority = "web:80";
    assert_eq!(redirect.location(&route.matches, &asked.view()), "https://web/");
}

#[test]
fn weights_are_shares() {
    let table = table("{match: {}, forward: {clusters: [{cluster: a, weight: 1}, {cluster: b, weight: 3}]}}");
    let RouteAction::Forward(forward) = &table.virtual_hosts()[0].routes[0].action else {
        panic!()
    };
    let of_a = (0..400).filter(|n| &*forward.choose(*n).cluster == "a").count();
    assert_eq!(of_a, 100);
}

struct NothingKnown;

impl Facts for NothingKnown {
    fn tell(&self, _: &Fact, _: &HeaderMap, _: &mut Vec<u8>) -> bool {
        false
    }
}

#[test]
fn edits_remove_first_and_add_in_order() {
    let table = table(
        "{match: {}, direct: {status: 200}, request_headers: {remove: [x-gone, x-set], set: {x-set: new}, add: {x-more: b}, default: {x-there: no, x-new: yes!}}}",
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-gone", "1"), ("x-set", "old"), ("x-more", "a"), ("x-there", "kept")] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    table.virtual_hosts()[0].routes[0]
        .request_headers
        .apply(&mut headers, &NothingKnown);
    let all = |name: &str| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert!(all("x-gone").is_empty());
    assert_eq!(all("x-set"), ["new"]);
    assert_eq!(all("x-more"), ["a", "b"]);
    assert_eq!(
        (all("x-there"), all("x-new")),
        (vec!["kept".parse().unwrap()], vec!["yes!".parse().unwrap()])
    );
}

#[test]
fn retries_follow_what_their_conditions_name() {
    let table = table(
        "{match: {}, forward: {cluster: a, retry: {on: [gateway-error, unavailable, retriable-status-codes], statuses: [418]}}}",
    );
    let RouteAction::Forward(forward) = &table.virtual_hosts()[0].routes[0].action else {
        panic!()
    };
    let retry = forward.retry.as_ref().unwrap();
    let mut grpc = HeaderMap::new();
    grpc.insert("grpc-status", "14".parse().unwrap());
    let none = HeaderMap::new();
    for (status, headers, expected) in [
        (503, &none, true),
        (500, &none, false),
        (418, &none, true),
        (200, &grpc, true),
        (200, &none, false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(retry.on.of_answer(status, headers), expected, "{status}");
    }
    assert!(retry.on.of_reset() && retry.on.of_timeout());
    let pauses = [1, 2, 3, 4, 40].map(|number| retry.longest_pause(number));
    assert_eq!(pauses, [25, 75, 175, 250, 250].map(Duration::from_millis));
}

#[test]
fn an_answer_may_say_when_it_is_tried_again() {
    let table = table(
        "{forward: {cluster: a, retry: {on: [5xx], reset_headers: [{name: x-at, format: unix-timestamp}, {name: retry-after}], reset_max_interval: 60s}}}",
    );
    let RouteAction::Forward(forward) = &table.virtual_hosts()[0].routes[0].action else {
        panic!("it leads to a cluster");
    };
    let retry = forward.retry.as_ref().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    for (fields, expected) in [
        (vec![], None),
        (vec![("retry-after", "7")], Some(7)),
        (vec![("retry-after", "61")], None),
        (vec![("retry-after", "soon")], None),
        (vec![("x-at", "1030"), ("retry-after", "7")], Some(30)),
        (vec![("x-at", "990"), ("retry-after", "7")], Some(7)),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            headers.insert(*name, value.parse().unwrap());
        }
        assert_eq!(
            retry.said_pause(&headers, now),
            expected.map(Duration::from_secs),
            "{fields:?}"
        );
    }
}

fn after(tried: &[SocketAddr]) -> Wish<'_> {
    Wish {
        tried,
        ..Wish::default()
    }
}

fn cluster(fields: &str) -> Config {
    config(&format!("  clusters: [{{name: a, {fields}}}]"))
}

#[test]
fn a_retry_goes_to_another_endpoint_while_there_is_one() {
    for balancing in ["round-robin", "least-request", "random"] {
        let config = cluster(&format!(
            "balancing: {balancing}, endpoints: ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80']"
        ));
        let cluster = config.http.cluster("a").unwrap();
        let mut random = 0u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 8
        };
        for _ in 0..50 {
            let mut tried: Vec<SocketAddr> = Vec::new();
            for _ in 0..3 {
                let address = cluster.choose(&after(&tried), &mut next).unwrap().settings.address;
                assert!(
                    !tried.contains(&address),
                    "{balancing}: {address} again, after {tried:?}"
                );
                tried.push(address);
            }
            assert!(
                cluster.choose(&after(&tried), &mut next).is_some(),
                "all were tried: any will do"
            );
        }
    }
}

#[test]
fn turns_are_taken_by_weight() {
    let config = cluster("balancing: round-robin, endpoints: [{address: '10.0.0.1:80', weight: 3}, '10.0.0.2:80']");
    let cluster = config.http.cluster("a").unwrap();
    let chosen = (0..40).map(|_| cluster.choose(&after(&[]), || 0).unwrap().settings.address.to_string());
    assert_eq!(chosen.filter(|address| address == "10.0.0.1:80").count(), 30);
}

#[test]
fn the_less_busy_of_two_is_chosen() {
    let config = cluster("endpoints: ['10.0.0.1:80', '10.0.0.2:80']");
    let cluster = config.http.cluster("a").unwrap();
    let _busy = cluster.endpoints()[0].hold();
    let mut draws = [0, 1].into_iter().cycle();
    let chosen = cluster.choose(&after(&[]), || draws.next().unwrap()).unwrap();
    assert_eq!(chosen.settings.address.to_string(), "10.0.0.2:80");
}

#[test]
fn a_limit_holds_and_is_given_back() {
    let config = cluster("limits: {requests: 1, retries: 0}");
    let cluster = config.http.cluster("a").unwrap();
    let first = cluster.admit().unwrap();
    assert!(cluster.admit().is_none() && cluster.admit_retry().is_none());
    assert!(cluster.admit_connection().is_some() && cluster.admit_pending().is_some());
    drop(first);
    assert!(cluster.admit().is_some());
}

#[test]
fn an_update_keeps_the_state_of_what_it_leaves_as_it_is() {
    let yaml = |weight: u32, more: &str| {
        format!("http: {{clusters: [{{name: a, endpoints: [{{address: '10.0.0.1:80', weight: {weight}}}{more}]}}]}}")
    };
    let first = Config::from_yaml(&yaml(1, "")).unwrap();
    let before = first.http.cluster("a").unwrap();
    let (_request, _load) = (before.admit(), before.endpoints()[0].hold());
    let (same, _) = first.updated(&(yaml(1, "") + " # a comment")).unwrap();
    assert!(Arc::ptr_eq(before, same.http.cluster("a").unwrap()));
    let (other, _) = first.updated(&yaml(2, ", '10.0.0.2:80'")).unwrap();
    let after = other.http.cluster("a").unwrap();
    let active: Vec<u32> = after.endpoints().iter().map(|endpoint| endpoint.active()).collect();
    assert_eq!(active, [1, 0]);
}

/// However many routes there are and however they overlap, the one that is found is the first of them that matches.
#[test]
fn among_many_routes_the_first_that_matches_is_taken() {
    let mut random = fastrand::Rng::with_seed(7);
    let parts = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/ä", "/A/b", "/b"];
    let targets = ["/", "/a", "/a/b", "/a/b/c/d", "/ab", "/A/B", "/ä/x", "/b/a", "/c"];
    let kinds = ["path", "prefix", "segments", "regex"];
    for _ in 0..200 {
        let routes: Vec<String> = (0..random.usize(1..40))
            .map(|route| {
                let (kind, part) = (kinds[random.usize(..kinds.len())], parts[random.usize(..parts.len())]);
                let (kind, part) = if kind == "segments" && part.ends_with('/') {
                    ("prefix", part)
                } else {
                    (kind, part)
                };
                let more = match random.u32(..6) {
                    0 if kind != "regex" => ", case_sensitive: false",
                    1 => ", headers: {x-canary: {exact: 'yes'}}",
                    _ => "",
                };
                format!("{{name: r{route}, match: {{{kind}: '{part}'{more}}}, direct: {{status: 200}}}}")
            })
            .collect();
        let table = table(&routes.join(", "));
        for target in targets {
            for asked in [Asked::new(target), Asked::new(target).with("x-canary", "yes")] {
                let view = asked.view();
                let scanned = table.virtual_hosts()[0]
                    .routes
                    .iter()
                    .find(|route| route.matches.matches(&view, 0));
                let found = table.route(&view, 0).map(|(_, route)| route);
                assert_eq!(
                    found.map(|route| &route.name),
                    scanned.map(|route| &route.name),
                    "{target} among {routes:?}"
                );
            }
        }
    }
}
