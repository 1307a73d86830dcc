//! Routes that say how long a request may take, and faults; with what is asked of them.

use serde_json::{Value, json};

use super::{RoutePair, pair};

fn route(prefix: &str, more: Value) -> Value {
    let mut action = json!({"cluster": "web"});
    let (Some(into), Value::Object(more)) = (action.as_object_mut(), more) else {
        panic!("two objects are merged");
    };
    into.extend(more);
    json!({"match": {"prefix": prefix}, "route": action})
}

fn fault(prefix: &str, mut fault: Value) -> Value {
    fault["@type"] = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault".into();
    json!({"match": {"prefix": prefix}, "route": {"cluster": "web"}, "typed_per_filter_config": {"envoy.filters.http.fault": fault}})
}

pub(crate) fn routes() -> Vec<RoutePair> {
    let all = json!({"numerator": 100});
    vec![
        pair(
            "{match: {prefix: /grpc/capped}, forward: {cluster: web, max_grpc_timeout: 600ms}}",
            route("/grpc/capped", json!({"max_grpc_timeout": "0.6s"})),
        ),
        pair(
            "{match: {prefix: /grpc/offset}, forward: {cluster: web, max_grpc_timeout: 2s, grpc_timeout_offset: 100ms, retry: {on: [5xx], retries: 1, per_try_timeout: 900ms}}}",
            route(
                "/grpc/offset",
                json!({"max_grpc_timeout": "2s", "grpc_timeout_offset": "0.1s", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.9s"}}),
            ),
        ),
        pair(
            "{match: {prefix: /grpc/free}, forward: {cluster: web, timeout: 600ms, max_grpc_timeout: 0s}}",
            route("/grpc/free", json!({"timeout": "0.6s", "max_grpc_timeout": "0s"})),
        ),
        pair(
            "{match: {prefix: /lasts/so}, forward: {cluster: web, max_stream_duration: 600ms}}",
            route(
                "/lasts/so",
                json!({"max_stream_duration": {"max_stream_duration": "0.6s"}}),
            ),
        ),
        pair(
            "{match: {prefix: /lasts/grpc}, forward: {cluster: web, max_stream_duration: {limit: 5s, grpc_timeout_header_max: 2s, grpc_timeout_header_offset: 100ms}}}",
            route(
                "/lasts/grpc",
                json!({"max_stream_duration": {"max_stream_duration": "5s", "grpc_timeout_header_max": "2s", "grpc_timeout_header_offset": "0.1s"}}),
            ),
        ),
        pair(
            "{match: {prefix: /fault/grpc}, forward: {cluster: web, fault: {abort_grpc: 7}}}",
            fault("/fault/grpc", json!({"abort": {"grpc_status": 7, "percentage": all}})),
        ),
        pair(
            "{match: {prefix: /fault/said}, forward: {cluster: web, fault: {delay_by_header: true, abort_by_header: true}}}",
            fault(
                "/fault/said",
                json!({"abort": {"header_abort": {}, "percentage": all}, "delay": {"header_delay": {}, "percentage": all}}),
            ),
        ),
        pair(
            "{match: {prefix: /fault/rare}, forward: {cluster: web, fault: {abort_by_header: true, abort_percent: 0}}}",
            fault(
                "/fault/rare",
                json!({"abort": {"header_abort": {}, "percentage": {"numerator": 0}}}),
            ),
        ),
    ]
}

/// What is asked of them: path and header lines.
pub(crate) fn asked() -> Vec<(String, String)> {
    const GRPC: &str = "content-type: application/grpc\r\n";
    let mut asked = Vec::new();
    for path in ["/grpc/capped", "/grpc/offset", "/grpc/free", "/lasts/so", "/lasts/grpc"] {
        for kind in ["", GRPC] {
            let is_heard = path == "/lasts/grpc" || path.starts_with("/grpc") && kind == GRPC;
            for says in [
                "",
                "1H",
                "5S",
                "4500m",
                "9000001u",
                "99999999H",
                "123456789m",
                "5s",
                "S",
                "0S",
                "1n",
                "50m",
                "300m",
            ] {
                let line = match says {
                    "" => String::new(),
                    says => format!("grpc-timeout: {says}\r\n"),
                };
                // Who is in no hurry is answered in time on any machine, who is in a hurry on none.
                let is_hurried = is_heard
                    && ["0S", "1n", "50m", "300m"].contains(&says)
                    && !(path.starts_with("/grpc") && says == "0S");
                let deed = if is_hurried { "x-do: slow\r\n" } else { "" };
                asked.push((path.to_owned(), format!("{kind}{line}{deed}")));
            }
            if is_heard || path == "/lasts/so" {
                asked.push((path.to_owned(), format!("{kind}x-do: slow\r\n")));
            }
        }
    }
    let faults = [
        "",
        "x-envoy-fault-abort-request: 418\r\n",
        "x-envoy-fault-abort-request: 199\r\n",
        "x-envoy-fault-abort-request: 418\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
        "x-envoy-fault-abort-request: 418\r\nx-envoy-fault-abort-request-percentage: 100\r\n",
        "x-envoy-fault-abort-request: some\r\n",
        "x-envoy-fault-abort-grpc-request: 5\r\n",
        "x-envoy-fault-abort-grpc-request: 5\r\nx-envoy-fault-abort-request: 503\r\n",
        "x-envoy-fault-delay-request: 30\r\n",
        "x-envoy-fault-delay-request: 30\r\nx-envoy-fault-abort-request: 429\r\n",
        "x-envoy-fault-delay-request: much\r\n",
    ];
    for path in ["/fault/grpc", "/fault/said", "/fault/rare"] {
        for lines in faults {
            for kind in ["", GRPC] {
                asked.push((path.to_owned(), format!("{kind}{lines}")));
            }
        }
    }
    asked
}
