//! Routes that answer pages of other origins, and what browsers ask of them.

use serde_json::{Value, json};

use super::{RoutePair, header, pair};

fn route(prefix: &str, mut policy: Value) -> Value {
    policy["@type"] = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy".into();
    json!({"match": {"prefix": prefix}, "route": {"cluster": "web"},
        "response_headers_to_add": [header("access-control-expose-headers", "x-of-route", "OVERWRITE_IF_EXISTS_OR_ADD")],
        "typed_per_filter_config": {"envoy.filters.http.cors": policy}})
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
