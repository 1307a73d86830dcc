//! What users wrote as Telemetry.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost_reflect::{DynamicMessage, Value};
use underpass_config::http::{MetadataTag, Propagation, RequestMetric, Sampling, TagValue, Tracing};
use underpass_config::{ExportProtocol, JsonFormat, LogTo, RequestFormat, RequestLog};
use underpass_xds_client::descriptor;
use underpass_xds_client::waypoint::Held;

use crate::reflection::{any, clear, edit, list, set, unknown_any};
use crate::{SERVER, SERVER_TCP, http, message, response, table, tcp};

/// The manager of the recorded chain, which has everything.
const MANAGER: &str = "filter_chains[0].filters[0].typed_config";
const OTEL: &str = "filter_chains[0].filters[0].typed_config.tracing.provider.typed_config";
const COLLECTOR: &str = "outbound|4317||collector.observe.svc.cluster.local";
const HOST: &str = "collector.observe.svc.cluster.local";

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A message of a type.
fn made(name: &str, fields: &[(&str, Value)]) -> Value {
    let mut made = DynamicMessage::new(descriptor(name).unwrap_or_else(|| panic!("there is no {name}")));
    for (field, value) in fields {
        made.set_field_by_name(field, value.clone());
    }
    Value::Message(made)
}

/// What the recorded listener comes to with a change; and what of its first chain is left out.
fn changed(change: impl FnOnce(&mut DynamicMessage)) -> (Held, Vec<String>) {
    let mut listener = message("10-telemetry", "lds", "main_internal");
    change(&mut listener);
    let mut held = Held::default();
    held.take(&response("lds", "main_internal", &listener)).unwrap();
    let left = held.chains[SERVER].left_out.iter();
    let left = left
        .map(|why| format!("{} {}", why.field, why.why))
        .filter(|why| !why.contains("filter_state_objects_to_log"))
        .collect();
    (held, left)
}

fn sent(name: &str, value: &str) -> (::http::HeaderName, ::http::HeaderValue) {
    (name.parse().unwrap(), value.parse().unwrap())
}

fn tracing(held: &Held) -> Option<Arc<Tracing>> {
    table(held, SERVER).tracing.clone()
}

fn logs(held: &Held) -> Arc<Vec<RequestLog>> {
    table(held, SERVER).logs.clone().unwrap()
}

fn tag(tracing: &Tracing, name: &str) -> Option<TagValue> {
    let tag = tracing.tags().iter().find(|tag| *tag.name == *name);
    tag.map(|tag| tag.value.clone())
}

#[test]
fn metrics_are_changed_as_telemetry_says() {
    let held = crate::held("10-telemetry");
    let metrics = &http(&held, SERVER).table.metrics;
    assert_eq!(metrics.disabled, [RequestMetric::RequestBytes]);
    assert_eq!(metrics.removed, [(RequestMetric::Count, "response_flags".into())]);
    assert_eq!(metrics.added.len(), 1);
    assert_eq!(
        (&*metrics.added[0].name, &metrics.added[0].metrics[..]),
        ("request_host", &[RequestMetric::Count][..])
    );
    assert_eq!(tcp(&held, SERVER_TCP).reporting_interval, Some(Duration::from_secs(5)));
    let plain = crate::held("01-baseline");
    assert_eq!(*http(&plain, SERVER).table.metrics, Default::default());
}

#[test]
fn logs_go_to_files_to_collectors_and_to_servers() {
    let (held, left) = changed(|_| {});
    assert!(left.is_empty(), "{left:?}");
    let logs = logs(&held);
    for log in &*logs {
        let expression = log.filter.expression.as_ref().unwrap();
        assert_eq!(expression.text(), "response.code >= 400 || connection.mtls == false");
    }
    let [file, server, collector] = &logs[..] else {
        panic!("{logs:?}")
    };
    let LogTo::File {
        path,
        format: RequestFormat::Json { format, .. },
    } = &file.to
    else {
        panic!("{file:?}")
    };
    assert_eq!(path, Path::new("/dev/stderr"));
    assert!(format!("{format:?}").contains("status"), "{format:?}");
    let LogTo::Grpc(grpc) = &server.to else {
        panic!("{server:?}")
    };
    assert_eq!(
        (&*grpc.log_name, &grpc.request_headers[..]),
        ("als", &["x-a".parse().unwrap()][..])
    );
    let LogTo::OpenTelemetry(otlp) = &collector.to else {
        panic!("{collector:?}")
    };
    assert_eq!((&*otlp.log_name, otlp.has_builtin_labels), ("shop", false));
    assert!(format!("{:?}", otlp.body).contains("Protocol"), "{:?}", otlp.body);
    let [(name, JsonFormat::Text(code))] = &otlp.attributes[..] else {
        panic!("{:?}", otlp.attributes)
    };
    assert!(&**name == "code" && format!("{code:?}").contains("Status"), "{code:?}");
    for export in [&grpc.export, &otlp.export] {
        assert_eq!(
            (&*export.cluster, export.authority.to_str().unwrap()),
            (COLLECTOR, HOST)
        );
        assert_eq!(export.protocol, ExportProtocol::Grpc);
    }
    // Chains of TCP have the same; what has none of its own says so.
    assert_eq!(*tcp(&held, SERVER_TCP).logs.clone().unwrap(), *logs);
    let plain = crate::held("01-baseline");
    assert_eq!(
        (table(&plain, SERVER).logs.clone(), tcp(&plain, SERVER_TCP).logs.clone()),
        (None, None)
    );
}

fn config(index: usize) -> String {
    format!("{MANAGER}.access_log[{index}].typed_config")
}

fn common(index: usize, field: &str) -> String {
    format!("{}.common_config.{field}", config(index))
}

/// Mutant: a log that is not understood closes its chain, or takes the others along.
#[test]
fn a_log_that_is_not_understood_is_left_out_alone() {
    type Change = Box<dyn Fn(&mut DynamicMessage)>;
    let cases: [(Change, &str); 6] = [
        (
            Box::new(|all| set(all, &common(1, "transport_api_version"), Value::EnumNumber(0))),
            "access_log[1].typed_config.common_config.transport_api_version",
        ),
        (
            Box::new(|all| clear(all, &common(2, "grpc_service"))),
            "access_log[2].typed_config.common_config.grpc_service",
        ),
        (
            Box::new(|all| set(all, &common(1, "grpc_service.envoy_grpc.authority"), text("a b"))),
            "access_log[1].typed_config.common_config.grpc_service.envoy_grpc.authority",
        ),
        (
            Box::new(|all| set(all, &format!("{}.body.string_value", config(2)), text("%NOTHING%"))),
            "access_log[2].typed_config.body",
        ),
        (
            Box::new(|all| {
                let path = format!("{}.additional_request_headers_to_log", config(1));
                list(all, &path, |names| names.push(text("no name")));
            }),
            "access_log[1].typed_config.additional_request_headers_to_log[1]",
        ),
        (
            Box::new(|all| set(all, &format!("{MANAGER}.access_log[0].typed_config"), unknown_any())),
            "access_log[0].typed_config",
        ),
    ];
    for (change, field) in cases {
        let (held, left) = changed(|all| change(all));
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains(field), "{left:?}");
        assert_eq!(logs(&held).len(), 2, "{field}");
    }
}

#[test]
fn what_a_log_may_say_besides_is_understood() {
    let pair = made(
        "opentelemetry.proto.common.v1.KeyValue",
        &[
            ("key", text("team")),
            (
                "value",
                made(
                    "opentelemetry.proto.common.v1.AnyValue",
                    &[("string_value", text("shop"))],
                ),
            ),
        ],
    );
    let pairs = made(
        "opentelemetry.proto.common.v1.KeyValueList",
        &[("values", Value::List(vec![pair]))],
    );
    let (held, left) = changed(|all| {
        let of = |index: usize, field: &str| format!("{MANAGER}.access_log[{index}].typed_config.{field}");
        set(all, &of(2, "resource_attributes"), pairs);
        set(all, &of(2, "disable_builtin_labels"), Value::Bool(false));
        set(
            all,
            &of(1, "additional_response_headers_to_log"),
            Value::List(vec![text("x-b")]),
        );
        set(
            all,
            &of(1, "additional_response_trailers_to_log"),
            Value::List(vec![text("x-c")]),
        );
    });
    assert!(left.is_empty(), "{left:?}");
    let logs = logs(&held);
    let (LogTo::Grpc(grpc), LogTo::OpenTelemetry(otlp)) = (&logs[1].to, &logs[2].to) else {
        panic!("{logs:?}")
    };
    assert_eq!(otlp.resource, [("team".into(), "shop".into())]);
    assert!(otlp.has_builtin_labels);
    assert_eq!(grpc.response_headers, ["x-b"]);
    assert_eq!(grpc.response_trailers, ["x-c"]);
}

#[test]
fn spans_are_told_of_as_telemetry_says() {
    let (held, _) = changed(|_| {});
    let tracing = tracing(&held).unwrap();
    let provider = &tracing.provider;
    assert_eq!(
        (&*provider.export.cluster, provider.export.authority.to_str().unwrap()),
        (COLLECTOR, HOST)
    );
    assert_eq!(
        (provider.export.protocol.clone(), &provider.export.headers[..]),
        (ExportProtocol::Grpc, &[][..])
    );
    assert_eq!(provider.propagation, [Propagation::W3c]);
    let service = provider.resource.iter().find(|(name, _)| **name == *"service.name");
    assert!(
        service.is_some_and(|(_, name)| name.starts_with("unknown_service")),
        "{provider:?}"
    );
    let sampling = Sampling {
        random: 5000,
        ..Sampling::default()
    };
    assert_eq!(tracing.sampling, sampling);
    assert_eq!((tracing.has_try_spans, tracing.max_path_tag_length), (false, 256));
    assert_eq!(tag(&tracing, "env"), Some(TagValue::Fixed("test".into())));
    assert_eq!(
        tag(&tracing, "tenant"),
        Some(TagValue::Header("x-tenant".parse().unwrap(), "none".into()))
    );
    let found = MetadataTag {
        filter: "envoy.filters.http.rbac".into(),
        path: vec!["istio_dry_run_deny_shadow_engine_result".into()],
        default: "".into(),
    };
    assert_eq!(
        tag(&tracing, "istio.authorization.dry_run.deny_policy.result"),
        Some(TagValue::Metadata(found))
    );
    assert!(matches!(
        tag(&tracing, "istio.source_workload"),
        Some(TagValue::Told(_))
    ));
    assert_eq!(tracing.tags().len(), 29);
    // Where nobody is told, and where Telemetry says that nobody is to be, there are none.
    let plain = crate::held("01-baseline");
    let one = "inbound-vip|80|http|server-v2.shop.svc.cluster.local";
    assert!(table(&plain, SERVER).tracing.is_none() && table(&held, one).tracing.is_none());
}

#[test]
fn what_spans_may_say_besides_is_understood() {
    let header = |key: &str| {
        let fields = [("key", text(key)), ("value", text("secret"))];
        made("envoy.config.core.v3.HeaderValue", &fields)
    };
    let (held, left) = changed(|all| {
        let of = |field: &str| format!("{MANAGER}.tracing.{field}");
        let number = made("google.protobuf.UInt32Value", &[("value", Value::U32(99))]);
        let yes = made("google.protobuf.BoolValue", &[("value", Value::Bool(true))]);
        let no = made("google.protobuf.BoolValue", &[("value", Value::Bool(false))]);
        let five = made("google.protobuf.Duration", &[("seconds", Value::I64(5))]);
        set(all, &of("max_path_tag_length"), number);
        set(all, &of("spawn_upstream_span"), yes);
        set(all, &of("random_sampling.value"), Value::F64(0.25));
        set(all, &of("client_sampling.value"), Value::F64(12.9));
        clear(all, &of("overall_sampling"));
        set(all, &format!("{OTEL}.service_name"), text("waypoint.shop"));
        set(all, &format!("{OTEL}.grpc_service.timeout"), five);
        set(
            all,
            &format!("{OTEL}.grpc_service.initial_metadata"),
            Value::List(vec![header("x-key")]),
        );
        let by_id = format!("{MANAGER}.request_id_extension.typed_config.use_request_id_for_trace_sampling");
        set(all, &by_id, no);
        let variable = [("name", text("NOBODY_HAS_THIS")), ("default_value", text("else"))];
        let variable = made("envoy.type.tracing.v3.CustomTag.Environment", &variable);
        set(all, &of("custom_tags[0].environment"), variable);
        set(all, &of("custom_tags[1].metadata.default_value"), text("nothing"));
    });
    assert!(left.is_empty(), "{left:?}");
    let tracing = tracing(&held).unwrap();
    let sampling = Sampling {
        client: 12,
        random: 25,
        overall: 100,
        by_request_id: false,
    };
    assert_eq!(tracing.sampling, sampling);
    assert_eq!((tracing.has_try_spans, tracing.max_path_tag_length), (true, 99));
    let export = &tracing.provider.export;
    assert_eq!(export.timeout, Duration::from_secs(5));
    assert_eq!(export.headers, [sent("x-key", "secret")]);
    assert!(
        tracing
            .provider
            .resource
            .contains(&("service.name".into(), "waypoint.shop".into()))
    );
    assert_eq!(tag(&tracing, "env"), Some(TagValue::Fixed("else".into())));
    let name = "istio.authorization.dry_run.allow_policy.name";
    assert!(
        matches!(tag(&tracing, name), Some(TagValue::Metadata(MetadataTag { default, .. })) if &*default == "nothing")
    );
}

/// A collector that is told by HTTP, as istiod writes it: the host and the path, without a scheme.
fn by_http(all: &mut DynamicMessage, uri: &str, action: i32) {
    let header = [("key", text("authorization")), ("value", text("secret"))];
    let header = made("envoy.config.core.v3.HeaderValue", &header);
    let added = [("header", header), ("append_action", Value::EnumNumber(action))];
    let added = made("envoy.config.core.v3.HeaderValueOption", &added);
    let timeout = made("google.protobuf.Duration", &[("seconds", Value::I64(3))]);
    let uri = [
        ("uri", text(uri)),
        ("cluster", text("outbound|4318||c")),
        ("timeout", timeout),
    ];
    let uri = made("envoy.config.core.v3.HttpUri", &uri);
    let service = [("http_uri", uri), ("request_headers_to_add", Value::List(vec![added]))];
    let service = made("envoy.config.core.v3.HttpService", &service);
    clear(all, &format!("{OTEL}.grpc_service"));
    set(all, &format!("{OTEL}.http_service"), service);
}

#[test]
fn a_collector_of_spans_may_be_told_by_http() {
    for uri in ["c.observe/v1/traces", "http://c.observe/v1/traces"] {
        let (held, left) = changed(|all| by_http(all, uri, 2));
        assert!(left.is_empty(), "{left:?}");
        let export = tracing(&held).unwrap().provider.export.clone();
        assert_eq!(export.protocol, ExportProtocol::Http("/v1/traces".to_owned()));
        assert_eq!(
            (&*export.cluster, export.authority.to_str().unwrap()),
            ("outbound|4318||c", "c.observe")
        );
        assert_eq!(export.timeout, Duration::from_secs(3));
        assert_eq!(export.headers, [sent("authorization", "secret")]);
    }
    for (uri, action) in [("c.observe/a b", 2), ("/v1/traces", 2), ("c.observe/v1/traces", 3)] {
        let (held, left) = changed(|all| by_http(all, uri, action));
        assert!(tracing(&held).is_none() && left.len() == 1, "{uri} {left:?}");
    }
}

/// Mutants: a provider is used without the sampler that it should ask (its sampling is then all of the requests); without what it says of propagation; a chain is
/// closed for that.
#[test]
fn there_are_no_spans_where_what_decides_about_them_is_not_understood() {
    type Change = Box<dyn Fn(&mut DynamicMessage)>;
    let unknown = |path: &'static str, number: u32| -> Change {
        Box::new(move |all| {
            edit(all, &format!("{path}.x"), &mut |message, _| {
                let mut bytes = prost::Message::encode_to_vec(message);
                prost::encoding::uint32::encode(number, &1, &mut bytes);
                *message = DynamicMessage::decode(prost_reflect::ReflectMessage::descriptor(message), &*bytes).unwrap();
            });
        })
    };
    let cases: [(Change, &str); 7] = [
        // `sampler`
        (
            unknown(
                "filter_chains[0].filters[0].typed_config.tracing.provider.typed_config",
                5,
            ),
            "5",
        ),
        // `no_context_propagation`
        (
            unknown("filter_chains[0].filters[0].typed_config.tracing", 13),
            "tracing.13",
        ),
        (
            Box::new(|all| set(all, &format!("{MANAGER}.tracing.provider.typed_config"), unknown_any())),
            "tracing.provider.typed_config",
        ),
        (
            Box::new(|all| {
                set(
                    all,
                    &format!("{MANAGER}.tracing.random_sampling.value"),
                    Value::F64(101.0),
                )
            }),
            "tracing.random_sampling",
        ),
        (
            Box::new(|all| clear(all, &format!("{OTEL}.grpc_service"))),
            "tracing.provider.typed_config.grpc_service",
        ),
        (
            Box::new(|all| {
                let detector = any("envoy.extensions.filters.http.cors.v3.Cors", |_| {});
                set(all, &format!("{OTEL}.resource_detectors[0].typed_config"), detector);
            }),
            "tracing.provider.typed_config.resource_detectors[0]",
        ),
        (
            Box::new(|all| {
                let service = made("envoy.config.core.v3.HttpService", &[]);
                set(all, &format!("{OTEL}.http_service"), service);
            }),
            "tracing.provider.typed_config.http_service",
        ),
    ];
    for (change, field) in cases {
        let (held, left) = changed(|all| change(all));
        assert!(tracing(&held).is_none(), "{field}");
        assert!(left.len() == 1 && left[0].contains(field), "{field}: {left:?}");
    }
}

/// Mutant: one takes the others along.
#[test]
fn a_tag_that_is_not_understood_is_left_out_alone() {
    let kind = made("envoy.type.metadata.v3.MetadataKind.Host", &[]);
    let cases: [(&str, Value); 3] = [
        ("custom_tags[1].metadata.kind.host", kind),
        ("custom_tags[0].value", text("%NOTHING%")),
        ("custom_tags[0].tag", text("")),
    ];
    for (path, value) in cases {
        let (held, left) = changed(|all| set(all, &format!("{MANAGER}.tracing.{path}"), value.clone()));
        assert_eq!(tracing(&held).unwrap().tags().len(), 28, "{path}");
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
