//! Routes that answer pages of other origins, and what browsers ask of them.

use serde_json::{Value, json};

use super::{RoutePair, header, pair};

fn policy(mut policy: Value) -> Value {
    policy["@type"] = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy".into();
    json!({"envoy.filters.http.cors": policy})
}

fn route(prefix: &str, of_route: Value) -> Value {
    json!({"match": {"prefix": prefix}, "route": {"cluster": "web"},
        "response_headers_to_add": [header("access-control-expose-headers", "x-of-route", "OVERWRITE_IF_EXISTS_OR_ADD")],
        "typed_per_filter_config": policy(of_route)})
}

/// A virtual host with a policy, which its routes have too, or complete theirs by.
pub(crate) fn our_host() -> String {
    "name: crossed
      domains: [crossed.test]
      cors: {allow_origins: ['http://a.test'], allow_methods: [GET, PUT], allow_headers: [x-of-host], expose_headers: [x-told], max_age: 9s,
        allow_credentials: true, forward_not_matching_preflights: false}
      routes:
      - {match: {prefix: /host/own/all}, forward: {cluster: web, cors: {allow_origins: ['http://b.test'], allow_methods: [POST], allow_headers: [x-of-route],
          expose_headers: [x-more], max_age: 7s, allow_credentials: false, forward_not_matching_preflights: true}}}
      - {match: {prefix: /host/own/origins}, forward: {cluster: web, cors: {allow_origins: [{prefix: 'http://b'}]}}}
      - {match: {prefix: /host/own/methods}, forward: {cluster: web, cors: {allow_methods: ['*']}}}
      - {match: {prefix: /host/own/nothing}, forward: {cluster: web, cors: {}}}
      - {match: {prefix: /host/direct}, direct: {status: 200, body: here}}
      - {match: {prefix: /host/redirect}, redirect: {path: /x}}
      - {match: {prefix: /host/on}, forward: {cluster: web}}"
        .to_owned()
}

pub(crate) fn envoys_host() -> Value {
    let own = |prefix: &str, of_route| json!({"match": {"prefix": prefix}, "route": {"cluster": "web"}, "typed_per_filter_config": policy(of_route)});
    json!({"name": "crossed", "domains": ["crossed.test"],
    "typed_per_filter_config": policy(json!({"allow_origin_string_match": [{"exact": "http://a.test"}], "allow_methods": "GET,PUT", "allow_headers": "x-of-host",
        "expose_headers": "x-told", "max_age": "9", "allow_credentials": true, "forward_not_matching_preflights": false})),
    "routes": [
        own("/host/own/all", json!({"allow_origin_string_match": [{"exact": "http://b.test"}], "allow_methods": "POST", "allow_headers": "x-of-route",
            "expose_headers": "x-more", "max_age": "7", "allow_credentials": false, "forward_not_matching_preflights": true})),
        own("/host/own/origins", json!({"allow_origin_string_match": [{"prefix": "http://b"}]})),
        own("/host/own/methods", json!({"allow_methods": "*"})),
        own("/host/own/nothing", json!({})),
        {"match": {"prefix": "/host/direct"}, "direct_response": {"status": 200, "body": {"inline_string": "here"}}},
        {"match": {"prefix": "/host/redirect"}, "redirect": {"path_redirect": "/x"}},
        {"match": {"prefix": "/host/on"}, "route": {"cluster": "web"}},
    ]})
}

pub(crate) fn routes() -> Vec<RoutePair> {
    let mut aborted = route(
        "/cors/abort",
        json!({"allow_origin_string_match": [{"safe_regex": {"regex": ".*"}}]}),
    );
    aborted["typed_per_filter_config"]["envoy.filters.http.fault"] = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 503, "percentage": {"numerator": 100}}});
    vec![
        pair(
            "{match: {prefix: /cors/some}, response_headers: {set: {access-control-expose-headers: x-of-route}}, forward: {cluster: web, cors: {
                allow_origins: ['http://a.test', {prefix: 'https://b.'}, {suffix: .c.test}, {regex: 'http://[0-9]+\\.d\\.test'}],
                allow_methods: [GET, PUT], allow_headers: [x-one, x-two], expose_headers: [x-told, x-more], max_age: 1h 1s, allow_credentials: true}}}",
            route(
                "/cors/some",
                json!({"allow_origin_string_match": [{"exact": "http://a.test"}, {"prefix": "https://b."}, {"suffix": ".c.test"}, {"safe_regex": {"regex": "http://[0-9]+\\.d\\.test"}}],
                "allow_methods": "GET,PUT", "allow_headers": "x-one,x-two", "expose_headers": "x-told,x-more", "max_age": "3601", "allow_credentials": true}),
            ),
        ),
        pair(
            "{match: {prefix: /cors/any}, response_headers: {set: {access-control-expose-headers: x-of-route}}, forward: {cluster: web, cors: {allow_origins: ['*'], allow_methods: ['*'], allow_headers: ['*'], max_age: 0s}}}",
            route(
                "/cors/any",
                json!({"allow_origin_string_match": [{"exact": "*"}], "allow_methods": "*", "allow_headers": "*", "max_age": "0"}),
            ),
        ),
        pair(
            "{match: {prefix: /cors/kept}, response_headers: {set: {access-control-expose-headers: x-of-route}}, forward: {cluster: web, cors: {allow_origins: ['http://a.test'], allow_methods: [GET], forward_not_matching_preflights: false}}}",
            route(
                "/cors/kept",
                json!({"allow_origin_string_match": [{"exact": "http://a.test"}], "allow_methods": "GET", "forward_not_matching_preflights": false}),
            ),
        ),
        pair(
            "{match: {prefix: /cors/abort}, response_headers: {set: {access-control-expose-headers: x-of-route}}, forward: {cluster: web, cors: {allow_origins: [{regex: '.*'}]}, fault: {abort: 503}}}",
            aborted,
        ),
    ]
}

/// What is asked of the virtual host `crossed.test`: method, path, header lines.
pub(crate) fn asked_of_host() -> Vec<(&'static str, String, String)> {
    let paths = [
        "own/all",
        "own/origins",
        "own/methods",
        "own/nothing",
        "direct",
        "redirect",
        "on",
    ];
    // A path that no route is for.
    let paths = paths
        .map(|path| format!("/host/{path}/x"))
        .into_iter()
        .chain(["/none".to_owned()]);
    let mut asked = Vec::new();
    for path in paths {
        for origin in [
            "",
            "origin: http://a.test\r\n",
            "origin: http://b.test\r\n",
            "origin: http://c.test\r\n",
        ] {
            let wish =
                "access-control-request-method: PUT\r\naccess-control-request-headers: x-two\r\ncontent-length: 0\r\n";
            asked.push(("OPTIONS", path.clone(), format!("{origin}{wish}")));
            asked.push(("GET", path.clone(), origin.to_owned()));
        }
    }
    asked
}

/// What is asked of them: method, path, header lines.
pub(crate) fn asked() -> Vec<(&'static str, String, String)> {
    let origins = [
        "",
        "origin:\r\n",
        "origin: http://a.test\r\n",
        "origin: http://A.test\r\n",
        "origin: http://a.test.evil\r\n",
        "origin: https://b.anything\r\n",
        "origin: http://x.c.test\r\n",
        "origin: http://12.d.test\r\n",
        "origin: http://12.d.test.evil\r\n",
        "origin: null\r\n",
        "origin: *\r\n",
    ];
    let wishes = [
        "",
        "access-control-request-method: PUT\r\n",
        "access-control-request-method:\r\n",
        "access-control-request-method: PUT\r\naccess-control-request-headers: x-two, x-three\r\n",
    ];
    let mut asked = Vec::new();
    for path in ["some", "any", "kept", "abort"] {
        for origin in origins {
            // HTTP/2 says nothing of a body that there is not, and `differences` are not what these are about.
            for wish in wishes {
                let lines = format!("{origin}{wish}content-length: 0\r\n");
                asked.push(("OPTIONS", format!("/cors/{path}/x"), lines));
            }
            asked.push(("GET", format!("/cors/{path}/x"), origin.to_owned()));
            asked.push((
                "PUT",
                format!("/cors/{path}/x"),
                format!("{origin}{}content-length: 0\r\n", wishes[1]),
            ));
        }
    }
    let told = "x-do: allows\r\norigin: http://a.test\r\n".to_owned();
    asked.push(("GET", "/cors/some/x".to_owned(), told.clone()));
    asked.push(("GET", "/cors/any/x".to_owned(), told.clone()));
    asked.push(("GET", "/x".to_owned(), told));
    asked
}
