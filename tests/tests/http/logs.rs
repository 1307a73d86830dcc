//! Access logs in Envoy's words: the same formats and filters in Envoy and in us, the same requests to both, the same lines, but for times, ports and ids.

mod endpoint;
mod place;

use std::time::Duration;

use serde_json::{Value, json};
use underpass_config::{ISTIO_JSON, ISTIO_TEXT};
use underpass_tests::{Need, World, available, wait};

use place::{Ask, Log, Place};

/// What istiod sent a waypoint: the file logs of its listeners.
const RECORDED: &str = include_str!("logs/recorded-10.json");

/// Operators that Istio's formats do not have.
const MORE: &str = "%REQ(:PATH):40% %REQ_WITHOUT_QUERY(:PATH)% %REQ(x-none?x-more)% %REQ(x-more):3% %RESP(content-type?x-kind)% %RESP(x-none)% \
    %TRAILER(x)% %RESPONSE_FLAGS_LONG% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER% \
    %UPSTREAM_CLUSTER% %DOWNSTREAM_LOCAL_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% \
    %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_PEER_URI_SAN% %DYNAMIC_METADATA(a:b)% %FILTER_STATE(wasm.downstream_peer:PLAIN)% %% \
    %START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)% %HOSTNAME% %REQ(:SCHEME)% %REQ(HOST)%\n";

fn text(name: &'static str, format: &str, more: Value) -> Log {
    let extension = "type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery";
    let mut envoys = json!({"text_format_source": {"inline_string": format},
        "formatters": [{"name": "envoy.formatter.req_without_query", "typed_config": {"@type": extension}}]});
    place::merge(&mut envoys, more.clone());
    let mut ours = json!({"text_format": format});
    place::merge(&mut ours, more);
    Log {
        name,
        ours,
        log_format: envoys,
        filter: Value::Null,
    }
}

fn json_log(name: &'static str, format: Value, omits_empty: bool) -> Log {
    Log {
        name,
        ours: json!({"json_format": format, "omit_empty_values": omits_empty.to_string()}),
        log_format: json!({"json_format": format, "omit_empty_values": omits_empty}),
        filter: Value::Null,
    }
}

/// A log of paths, with a filter of each.
fn filtered(name: &'static str, ours: Value, envoys: Value) -> Log {
    let mut log = text(name, "%REQ(:PATH)% %RESPONSE_CODE%\n", json!({}));
    log.ours["filter"] = ours;
    log.filter = envoys;
    log
}

fn cel(expression: &str) -> Value {
    json!({"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression": expression}}})
}

/// In both: a name for each, so that a failure says which differs.
fn logs() -> Vec<Log> {
    let by_cel = |name, expression: &str| filtered(name, json!({"expression": expression}), cel(expression));
    let istio_json: serde_json::Map<String, Value> = ISTIO_JSON
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let nested = json!({
        "path": "%REQ(:PATH)%",
        "both": "%REQ(x-none)% of %RESPONSE_CODE%",
        "in": {"attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "none": "%REQ(x-none)%", "deeper": {"port": "%UPSTREAM_REMOTE_PORT%"}},
        "list": ["%REQ(x-none)%", "%BYTES_SENT%", "plain"],
        "grpc": "%GRPC_STATUS_NUMBER%",
        "request_duration": "%REQUEST_DURATION%",
        "response_duration": "%RESPONSE_DURATION%",
        "response_tx_duration": "%RESPONSE_TX_DURATION%",
        "flags": "%RESPONSE_FLAGS%",
    });
    let mut logs = vec![
        Log {
            name: "istio",
            ours: json!({"format": "istio"}),
            log_format: json!({"text_format_source": {"inline_string": ISTIO_TEXT}}),
            filter: Value::Null,
        },
        Log {
            name: "istio-json",
            ours: json!({"format": "istio-json"}),
            log_format: json!({"json_format": istio_json}),
            filter: Value::Null,
        },
        text("more", MORE, json!({})),
        text(
            "omitting",
            "%REQ(:PATH)% [%REQ(x-none)%] [%UPSTREAM_HOST%]\n",
            json!({"omit_empty_values": true}),
        ),
        json_log("nested", nested.clone(), false),
        json_log("nested-omitting", nested, true),
        filtered(
            "errors",
            json!({"status_codes": ["400-599"]}),
            json!({"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "none"}}}}),
        ),
        filtered(
            "flagged",
            json!({"response_flags": []}),
            json!({"response_flag_filter": {}}),
        ),
        filtered(
            "some-flags",
            json!({"response_flags": ["UF", "NR"]}),
            json!({"response_flag_filter": {"flags": ["UF", "NR"]}}),
        ),
    ];
    for (name, expression) in [
        ("cel-code", "response.code >= 400"),
        ("cel-ok", "response.code < 400 && request.method == 'GET'"),
        ("cel-header", "request.headers['x-more'] == 'abcdef'"),
        ("cel-not-header", "request.headers['x-more'] != 'abcdef'"),
        ("cel-in", "'x-more' in request.headers"),
        (
            "cel-has",
            "has(request.headers.nosuch) || request.path.startsWith('/direct')",
        ),
        ("cel-matches", "request.path.matches('^/(direct|void)')"),
        ("cel-flags", "response.flags != 0"),
        ("cel-upstream", "upstream.port == 9001"),
        ("cel-absent", "connection.tls_version != 'none'"),
        ("cel-mtls", "response.code == 200 && !connection.mtls"),
        ("cel-size", "request.size > 3 || response.size > 6"),
        ("cel-details", "response.code_details == 'via_upstream'"),
        ("cel-destination", "destination.port == 8080 && source.port > 0"),
        ("cel-grpc", "response.grpc_status == 14"),
    ] {
        logs.push(by_cel(name, expression));
    }
    logs.extend(recorded());
    logs
}

/// The recorded ones, as they are; ours are the same in our words.
fn recorded() -> Vec<Log> {
    let recorded: Vec<Value> = serde_json::from_str(RECORDED).expect("a recording");
    let names = ["recorded-uf", "recorded-nr", "recorded-errors", "recorded"];
    let of_both = [
        json!({"response_flags": ["UF"]}),
        json!({"response_flags": ["NR"]}),
        json!({"status_codes": ["400-599"]}),
        json!({}),
    ];
    assert_eq!(recorded.len(), names.len());
    let logs = names.into_iter().zip(of_both).zip(recorded);
    logs.map(|((name, mut filter), log)| {
        filter["expression"] = json!("response.code >= 400 || connection.mtls == false");
        let format = log["typed_config"]["log_format"].clone();
        Log {
            name,
            ours: json!({"json_format": format["json_format"], "filter": filter}),
            log_format: format,
            filter: log["filter"].clone(),
        }
    })
    .collect()
}

fn asked() -> Vec<Ask> {
    let get = |path: &str| Ask::of("GET", path, "", "");
    let asks = vec![
        get("/"),
        // Envoy takes the last address of X-Forwarded-For for the client's, unless told otherwise; we take no one's word for it (`policy`).
        Ask::of("GET", "/more", "x-more: abcdef\r\nuser-agent: me/1\r\n", ""),
        Ask::of("GET", "/quoted", "x-more: a\"b\\c\r\nuser-agent: \"q\"\r\n", ""),
        Ask::of("HEAD", "/head", "", ""),
        Ask::of("POST", "/post", "content-length: 5\r\n", "12345"),
        Ask::of(
            "POST",
            "/chunked",
            "transfer-encoding: chunked\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
        ),
        Ask::of("PUT", "/empty", "content-length: 0\r\n", ""),
        Ask::of("GET", "/does", "x-do: 500\r\n", ""),
        Ask::of("GET", "/does", "x-do: 404\r\n", ""),
        Ask::of("GET", "/does", "x-do: 204\r\n", ""),
        Ask::of("GET", "/does", "x-do: chunked\r\n", ""),
        Ask::of("GET", "/does", "x-do: close\r\n", ""),
        Ask::of("GET", "/does", "x-do: short\r\n", ""),
        get("/direct"),
        Ask::of("HEAD", "/direct", "", ""),
        get("/redirect"),
        get("/rewrite/x"),
        get("/void"),
        get("/closed"),
        get("/closed-retried"),
        Ask::of("GET", "/retried", "x-do: 503\r\n", ""),
        get("/abort"),
        Ask::of("GET", "/slow", "x-do: slow\r\n", ""),
        get("/denied"),
        get("/named"),
        Ask {
            host: "other.test",
            ..get("/nowhere")
        },
        Ask::of(
            "POST",
            "/void",
            "content-type: application/grpc\r\ncontent-length: 0\r\n",
            "",
        ),
        Ask::of(
            "POST",
            "/does",
            "content-type: application/grpc\r\nx-do: grpc\r\ncontent-length: 0\r\n",
            "",
        ),
        Ask::of(
            "POST",
            "/grpc-plain",
            "content-type: application/grpc\r\ncontent-length: 0\r\n",
            "",
        ),
        Ask::of(
            "POST",
            "/denied",
            "content-type: application/grpc\r\ncontent-length: 0\r\n",
            "",
        ),
        Ask {
            is_abandoned: true,
            ..Ask::of("GET", "/left", "x-do: slow\r\n", "")
        },
        Ask {
            is_abandoned: true,
            ..Ask::of("GET", "/left-amid", "x-do: pause\r\n", "")
        },
        Ask {
            is_tunnel: true,
            ..Ask::of(
                "GET",
                "/ws",
                "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
                "",
            )
        },
    ];
    asks
}

/// What our line is, by Envoy's, where they differ on purpose.
fn meant(ask: &Ask, envoys: &str) -> String {
    match ask.lines {
        // A response that ends before its end is for us a connection that did; Envoy's codec takes the end for an error.
        "x-do: short\r\n" => envoys
            .replace("UPE", "UC")
            .replace("{protocol_error}", "{connection_termination}")
            .replace("UpstreamProtocolError", "UpstreamConnectionTermination"),
        _ => envoys.to_owned(),
    }
}

#[test]
fn lines_are_envoys() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let (logs, asks) = (logs(), asked());
    let place = Place::start(&logs);
    for (number, ask) in asks.iter().enumerate() {
        place.ask(number, ask);
    }
    let mut differing = Vec::new();
    for log in &logs {
        // Those of all requests come first; what is filtered came with them.
        let expected = (log.filter.is_null()).then_some(asks.len());
        let (ours, envoys) = place.lines(log, expected);
        for (number, ask) in asks.iter().enumerate() {
            let envoys = &meant(ask, &envoys[number]);
            if ours[number] != *envoys {
                let shown = format!(
                    "{} {} {} {:?}\n   ours: {:?}\n  envoy: {:?}",
                    log.name, ask.method, ask.path, ask.lines, ours[number], envoys
                );
                differing.push(shown);
            }
        }
    }
    assert!(
        differing.is_empty(),
        "{} lines differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

/// What is in force when a request comes says what its line is; a file that is wrong changes nothing.
#[test]
fn formats_are_changed_while_it_runs() {
    let world = World::loopback();
    let (client, us) = (world.host(), world.host());
    let log = world.directory().join("requests.log");
    let yaml = |log_of: &str| {
        format!(
            "node:\n  name: a\n  admin: '{}'\n  access_log: [{{path: '{}', {log_of}}}]\n  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http: {{routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{direct: {{status: 200}}}}]}}]}}]}}\n",
            us.at(15000),
            log.display(),
            us.at(8080)
        )
    };
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, yaml("text_format: '%REQ(:PATH)%'")).expect("write the configuration");
    let proxy = underpass_tests::Proxy::start_with_file(&world, &us, file);
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    let ask = |path: &str| crate::client::ask(&client, us.at(8080), &crate::client::get(path, ""));
    assert_eq!(ask("/one").status, 200);
    wait::eventually(wait::SOON, "the first line", || lines() == "/one\n");
    proxy.replace_file(&yaml("json_format: {p: '%REQ(:PATH)%', s: '%RESPONSE_CODE%'}"));
    wait::eventually(wait::SOON, "the new format is in force", || {
        ask("/two");
        lines().contains("{\"p\":\"/two\",\"s\":200}\n")
    });
    let rejected = proxy.config_updates("rejected");
    proxy.replace_file(&yaml("text_format: '%NOTHING%'"));
    wait::eventually(wait::SOON, "it is rejected", || {
        proxy.config_updates("rejected") > rejected
    });
    assert_eq!(ask("/three").status, 200);
    wait::eventually(Duration::from_secs(20), "the format stays", || {
        lines().ends_with("{\"p\":\"/three\",\"s\":200}\n")
    });
}
