//! `http.tracing_providers`, `tracing` and `decorator`; logs that others keep.

use std::time::Duration;

use underpass_config::http::{Propagation, Sampling, SpanDirection, TagValue};
use underpass_config::{Batching, Config, ExportProtocol, LogTo};

use super::rejected::refused;

const FULL: &str = r#"
node:
  access_log:
  - envoy_otel_als: {cluster: c, log_name: shop, disable_builtin_labels: true, resource_attributes: {a: b},
      log_format: {text: "%PROTOCOL%", labels: {code: "%RESPONSE_CODE%", in: {l: [a, "%REQ(x)%"]}}}}
    filter: {status_codes: [400-599]}
  - envoy_http_als: {cluster: c, authority: als.test, timeout: 2s, headers: {x-token: t}, batching: {items: 7, interval: 3s, pending: 1MiB},
      additional_request_headers_to_log: [X-A], additional_response_headers_to_log: [x-b], additional_response_trailers_to_log: [x-c]}
http:
  clusters: [{name: c, protocol: http2}, {name: h}]
  tracing_providers:
  - name: grpc
    opentelemetry: {cluster: c, service_name: shop, resource_attributes: {k: v}, propagation: [b3-multi, w3c, b3, w3c]}
  - name: http
    opentelemetry: {cluster: h, authority: otlp.test, http: {path: /x/y, }, headers: {authorization: secret}}
  routes:
  - name: full
    tracing: {provider: grpc, client_sampling: 10.9, random_sampling: 0.019, overall_sampling: 99, use_request_id_for_trace_sampling: false,
      direction: egress, spawn_upstream_span: true, max_path_tag_length: 9,
      custom_tags: {a: {literal: {value: x}}, b: {header: {name: X-B, default_value: d}}, c: {environment: {name: UNDERPASS_NO_SUCH, default_value: e}},
        d: {formatter: {value: "%RESPONSE_CODE%"}}, e: {metadata: {key: k, path: [p, q]}}}}
    virtual_hosts: [{name: v, domains: ["*"], routes: [{decorator: "op/*", direct: {status: 200}}, {decorator: {operation: o, propagate: false}, direct: {status: 200}}]}]
  - {name: plain, tracing: {provider: http}, virtual_hosts: []}
  - {name: none, virtual_hosts: []}
"#;

#[test]
fn all_that_is_said_is_there() {
    let config = Config::from_yaml(FULL).unwrap();
    let tracing = config.http.tables["full"].tracing.clone().unwrap();
    let sampling = Sampling {
        client: 10,
        random: 1,
        overall: 99,
        by_request_id: false,
    };
    assert_eq!(tracing.sampling, sampling);
    assert_eq!(
        (tracing.direction, tracing.has_try_spans, tracing.max_path_tag_length),
        (SpanDirection::Egress, true, 9)
    );
    let provider = &tracing.provider;
    assert_eq!(
        provider.propagation,
        [Propagation::B3Multi, Propagation::W3c, Propagation::B3]
    );
    let resource: Vec<_> = provider
        .resource
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(resource, [("k", "v"), ("service.name", "shop")]);
    assert_eq!(
        (&*provider.export.cluster, &provider.export.protocol),
        ("c", &ExportProtocol::Grpc)
    );
    assert_eq!(
        (provider.export.authority.to_str().unwrap(), provider.export.batching),
        ("c", Batching::SPANS)
    );
    let values: Vec<_> = tracing.tags().iter().map(|tag| (&*tag.name, &tag.value)).collect();
    assert!(matches!(
        values[..],
        [
            ("a", TagValue::Fixed(_)),
            ("b", TagValue::Header(..)),
            ("c", TagValue::Fixed(_)),
            ("d", TagValue::Told(_)),
            ("e", TagValue::Metadata(_))
        ]
    ));
    assert_eq!(values[2].1, &TagValue::Fixed("e".into()));
    assert!(tracing.wanted().request.iter().any(|name| name == "x-b"));
    let routes = &config.http.tables["full"].virtual_hosts()[0].routes;
    let decorators: Vec<_> = routes
        .iter()
        .map(|route| route.decorator.as_ref().unwrap().propagates)
        .collect();
    assert_eq!(decorators, [true, false]);
    let plain = config.http.tables["plain"].tracing.clone().unwrap();
    assert_eq!((plain.sampling, plain.has_try_spans), (Sampling::default(), false));
    assert_eq!(plain.provider.export.protocol, ExportProtocol::Http("/x/y".to_owned()));
    assert_eq!(&*plain.provider.resource[0].1, "unknown_service:underpass");
    assert!(config.http.tables["none"].tracing.is_none());
    let [otlp, als] = &config.node.access_log.requests[..] else {
        panic!()
    };
    let LogTo::OpenTelemetry(otlp) = &otlp.to else {
        panic!("{otlp:?}")
    };
    assert_eq!(
        (&*otlp.log_name, otlp.has_builtin_labels, otlp.attributes.len()),
        ("shop", false, 2)
    );
    let LogTo::Grpc(als) = &als.to else { panic!("{als:?}") };
    assert_eq!(
        (als.export.batching.items, als.export.batching.interval),
        (7, Duration::from_secs(3))
    );
    assert_eq!(
        (
            als.request_headers.len(),
            als.response_headers.len(),
            als.response_trailers.len()
        ),
        (1, 1, 1)
    );
    // The admin view has no secrets.
    let shown = serde_json::to_string(&config.node.access_log).unwrap();
    assert!(shown.contains("c by grpc") && !shown.contains("x-token"), "{shown}");
}

#[test]
fn what_is_wrong_is_named() {
    refused(
        r#"
node:
  access_log:
  - {envoy_otel_als: {cluster: nosuch, log_format: {text: "%NOTHING%", labels: {a: "%"}}}}
  - {envoy_http_als: {cluster: h, additional_request_headers_to_log: ["a b"]}, path: /x}
http:
  clusters: [{name: c, protocol: http2}, {name: h}]
  tracing_providers:
  - {name: one, opentelemetry: {cluster: h, propagation: [w3], batching: {items: 0}, headers: {te: x}}}
  - {name: one, opentelemetry: {cluster: c, propagation: [], http: {path: x}}}
  routes:
  - {name: a, tracing: {provider: on, random_sampling: 101, custom_tags: {t: {}, u: {literal: {value: a}, header: {name: b}}, v: {formatter: {value: "%X%"}}}}, virtual_hosts: []}
  - {name: b, virtual_hosts: [{name: v, domains: ["*"], routes: [{decorator: "", direct: {status: 200}}]}]}"#,
        "
            node.access_log[0].envoy_otel_als.log_format.text | %NOTHING% | not supported | PROTOCOL
            node.access_log[0].envoy_otel_als.log_format.labels.a | % | begins nothing | %%
            node.access_log[1].envoy_http_als.additional_request_headers_to_log[0] | a b | not the name of a header | letters
            node.access_log[1] |  | more than one place | log of its own
            http.tracing_providers[0].opentelemetry.cluster | h | does not speak HTTP/2 | protocol: http2
            http.tracing_providers[0].opentelemetry.headers.te | x | no header field that can be sent | frames no message
            http.tracing_providers[0].opentelemetry.batching.items | 0 | not a valid number | 1 to 4096
            http.tracing_providers[0].opentelemetry.propagation[0] | w3 | not a known value | w3c
            http.tracing_providers[1].opentelemetry.http.path | x | not a path | /v1/traces
            http.tracing_providers[1].opentelemetry.propagation |  | is empty | w3c
            http.tracing_providers[1].name | one | already has this name | its own
            http.routes[0].tracing.custom_tags.t |  | exactly one place | literal
            http.routes[0].tracing.custom_tags.u |  | exactly one place | literal
            http.routes[0].tracing.custom_tags.v.formatter.value | %X% | not supported | PROTOCOL
            http.routes[0].tracing.random_sampling | 101 | not a percentage | 0 to 100
            http.routes[0].tracing.provider | on | not one of `http.tracing_providers` | one
            http.routes[1].virtual_hosts[0].routes[0].decorator |  | not the name of an operation | web.shop
            node.access_log[0].envoy_otel_als.cluster | nosuch | not one of `http.clusters` | c, h
            node.access_log[1].envoy_http_als.cluster | h | does not speak HTTP/2 | protocol: http2",
    );
}
