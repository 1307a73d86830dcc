//! Logs that others keep: entries of OpenTelemetry's and of Envoy's access log service, as Envoy tells them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use underpass_tests::{Need, available, wait};

use super::collector::Collector;
use super::messages::{self, Any, AnyValue, KeyValue, texts};
use super::place::{Log, Place, Side, Table};

const OTLP: &str = "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";
const ALS: &str = "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";

/// `common_config`, as istiod writes it, but that nothing waits.
fn common(log_name: &str) -> Value {
    json!({
        "log_name": log_name,
        "transport_api_version": "V3",
        "buffer_size_bytes": 1,
        "buffer_flush_interval": "0.05s",
        "grpc_service": {"envoy_grpc": {"cluster_name": "grpc-collector", "authority": "collector.test"}},
    })
}

fn cel(expression: &str) -> Value {
    json!({"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression": expression}}})
}

fn logs() -> Vec<Log> {
    let otlp = |name: &str, more: Value| {
        let mut config = json!({"@type": OTLP, "common_config": common(name)});
        config
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        json!({"name": "otlp", "typed_config": config})
    };
    let text = |value: &str| json!({"string_value": value});
    // The first is Istio's, as it was recorded (10-telemetry), with more to tell.
    let labels = [
        ("code", "%RESPONSE_CODE%"),
        ("agent", "%REQ(user-agent)%"),
        ("none", "%REQ(x-none)%"),
        ("trace", "%TRACE_ID%"),
        ("both", "%REQ(x-none)% of %PROTOCOL%"),
    ];
    let ours: BTreeMap<_, _> = labels.into_iter().collect();
    let envoys: Vec<Value> = labels
        .iter()
        .map(|(key, value)| json!({"key": key, "value": text(value)}))
        .collect();
    let filter = "response.code >= 400 || connection.mtls == false";
    let mut filtered = otlp(
        "shop",
        json!({"disable_builtin_labels": true, "body": text("%PROTOCOL%"), "attributes": {"values": envoys}}),
    );
    filtered["filter"] = cel(filter);
    let nested = json!({"kvlist_value": {"values": [{"key": "code", "value": text("%RESPONSE_CODE%")},
        {"key": "list", "value": {"array_value": {"values": [text("a"), text("%REQ(x-none)%")]}}}]}});
    let errors = json!({"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "none"}}}});
    let mut entries = json!({"name": "als", "typed_config": {"@type": ALS, "common_config": common("als"),
        "additional_request_headers_to_log": ["x-a", "x-none"], "additional_response_headers_to_log": ["x-endpoint"]}});
    entries["filter"] = cel("request.path != '/direct'");
    let mut of_errors = json!({"name": "als", "typed_config": {"@type": ALS, "common_config": common("errors")}});
    of_errors["filter"] = errors;
    vec![
        Log {
            ours: json!({"envoy_otel_als": {"cluster": "grpc-collector", "authority": "collector.test", "batching": {"items": "1"}, "log_name": "shop",
                "disable_builtin_labels": "true", "log_format": {"text": "%PROTOCOL%", "labels": ours}}, "filter": {"expression": filter}}),
            envoys: filtered,
        },
        Log {
            ours: json!({"envoy_otel_als": {"cluster": "grpc-collector", "authority": "collector.test", "batching": {"items": "1"}, "log_name": "labelled",
                "resource_attributes": {"a": "b"},
                "log_format": {"labels": {"agent": "%REQ(user-agent)%", "nested": {"code": "%RESPONSE_CODE%", "list": ["a", "%REQ(x-none)%"]}}}}}),
            envoys: otlp(
                "labelled",
                json!({"resource_attributes": {"values": [{"key": "a", "value": text("b")}]},
                "attributes": {"values": [{"key": "agent", "value": text("%REQ(user-agent)%")}, {"key": "nested", "value": nested}]}}),
            ),
        },
        Log {
            ours: json!({"envoy_http_als": {"cluster": "grpc-collector", "authority": "collector.test", "batching": {"items": "1"}, "log_name": "als",
                "additional_request_headers_to_log": ["x-a", "x-none"], "additional_response_headers_to_log": ["x-endpoint"]},
                "filter": {"expression": "request.path != '/direct'"}}),
            envoys: entries,
        },
        Log {
            ours: json!({"envoy_http_als": {"cluster": "grpc-collector", "authority": "collector.test", "batching": {"items": "1"}, "log_name": "errors"},
                "filter": {"status_codes": ["400-599"]}}),
            envoys: of_errors,
        },
    ]
}

/// Entries by the log's name and the request's, without what differs from one run to the next.
fn told(collector: &Collector, side: &Side) -> BTreeMap<(String, String), String> {
    let told = collector.told();
    let mut all = BTreeMap::new();
    for (resource, record) in &told.logs {
        let mut resource = texts(&resource.attributes);
        let log = resource.get("log_name").cloned().unwrap_or_else(|| "shop".to_owned());
        let mut attributes: BTreeMap<String, String> = record
            .attributes
            .iter()
            .map(|one| (one.key.clone(), shown(one.value.as_ref())))
            .collect();
        let agent = attributes["agent"].clone();
        if let Some(trace) = attributes.get_mut("trace") {
            let id = match record.trace_id.is_empty() {
                true => "-".to_owned(),
                false => messages::hex(&record.trace_id),
            };
            let id = Any::Text(id);
            assert_eq!(*trace, format!("{:?}", Some(&id)));
            *trace = format!("{} {}", trace.len(), record.span_id.len());
        }
        assert!(record.time > 0);
        resource.retain(|name, _| name != "telemetry.sdk.version");
        let body = shown(record.body.as_ref());
        let text = format!("{resource:?} {attributes:?} {body}");
        assert!(all.insert((log, agent), text).is_none(), "an entry is there once");
    }
    for (identifier, entry) in &told.entries {
        let node = identifier.node.clone().unwrap_or_default().id;
        let mut entry = entry.clone();
        let agent = entry
            .request
            .as_ref()
            .map(|request| request.user_agent.clone())
            .unwrap_or_default();
        normal(&mut entry, side);
        let key = (identifier.log_name.clone(), agent);
        let text = format!("{node} {entry:?}");
        if let Some(before) = all.insert(key.clone(), text.clone()) {
            panic!("{key:?} is there twice:\n{before}\n{text}");
        }
    }
    all
}

fn shown(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::Map(map)) => {
            let fields = map
                .values
                .iter()
                .map(|KeyValue { key, value: of }| (key, shown(of.as_ref())));
            format!("{:?}", fields.collect::<BTreeMap<_, _>>())
        }
        Some(Any::List(list)) => {
            let items = list.values.iter().map(|item| shown(Some(item)));
            format!("{:?}", items.collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    }
}

fn normal(entry: &mut messages::Entry, side: &Side) {
    let common = entry.common.as_mut().expect("what all logs have");
    assert!(
        common
            .started
            .take()
            .is_some_and(|started| started.seconds > 1_700_000_000)
    );
    assert!(common.duration.take().is_some());
    for address in [
        &mut common.client,
        &mut common.direct_client,
        &mut common.local,
        &mut common.endpoint,
    ] {
        let Some(socket) = address.as_mut().and_then(|address| address.socket.as_mut()) else {
            continue;
        };
        for (text, name) in &side.names {
            socket.address = socket.address.replace(text, name);
        }
        if socket.port > 10_000 {
            socket.port = 0;
        }
    }
    let request = entry.request.as_mut().expect("a request");
    assert_eq!(request.request_id.len(), 36);
    // By one of these names a request is found in other logs.
    if common.stream_id == request.request_id {
        common.stream_id = "as the request".to_owned();
    }
    request.request_id.clear();
    let response = entry.response.as_mut().expect("a response");
    response.body = u64::from(response.body > 0);
}

#[test]
fn entries_are_envoys() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let table = Table {
        name: "traced",
        ours: json!({}),
        envoys: json!({}),
        direction: "INBOUND",
        request_id: Value::Null,
        is_by_http: false,
    };
    let place = Place::start(&[table], &logs());
    let asks = [
        ("GET", "/ok", "x-a: 1\r\nreferer: there\r\n", ""),
        ("POST", "/ok", "content-length: 5\r\n", "12345"),
        ("GET", "/ok", "x-do: 404\r\n", ""),
        ("GET", "/rewrite/x", "", ""),
        ("GET", "/direct", "", ""),
        ("GET", "/nowhere", "", ""),
        ("GET", "/void", "", ""),
        ("GET", "/closed", "", ""),
        ("GET", "/retried", "x-do: 503\r\n", ""),
        ("OPTIONS", "/ok", "", ""),
    ];
    for (number, (method, path, lines, body)) in asks.iter().enumerate() {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: web.test:81\r\nuser-agent: n-{number}\r\n{lines}\r\n{body}");
        for side in place.sides() {
            side.ask(&place.client, 0, &request);
        }
    }
    // Two of all requests, one of those not to /direct, one of those with a status from 400 on.
    let expected = 2 * asks.len() + asks.len() - 1 + 6;
    let [ours, envoys] = place.sides().map(|side| {
        wait::eventually(wait::SOON, "all entries", || {
            told(&side.collector, side).len() >= expected
        });
        told(&side.collector, side)
    });
    assert_eq!((ours.len(), envoys.len()), (expected, expected));
    let differing: Vec<String> = ours
        .iter()
        .filter(|(key, ours)| envoys.get(*key) != Some(*ours))
        .map(|(key, ours)| format!("{key:?}\n   ours: {ours}\n  envoy: {:?}", envoys.get(key)))
        .collect();
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}
