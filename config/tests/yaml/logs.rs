//! `node.access_log`: one log or several, in the proxy's own format or in Envoy's words.

use underpass_config::{AccessLog, Config, LogFormat, LogTo, RequestFormat, RequestLog};

use super::rejected::refused;

fn logs(yaml: &str) -> AccessLog {
    Config::from_yaml(&format!("node:\n  access_log: {yaml}"))
        .unwrap()
        .node
        .access_log
        .clone()
}

fn lines_of(log: &RequestLog) -> &RequestFormat {
    match &log.to {
        LogTo::File { format, .. } => format,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_log_is_the_proxys_own_unless_it_says_otherwise() {
    let default = AccessLog::default();
    assert_eq!(Config::from_yaml("{}").unwrap().node.access_log, default);
    assert_eq!(logs("{}"), default);
    let own = logs("{format: json, path: /a}");
    assert_eq!((own.format, own.requests.len()), (LogFormat::Json, 0));
    // One in Envoy's words is instead of it.
    let istio = logs("{format: istio, path: /a}");
    assert_eq!((istio.format, istio.requests.len()), (LogFormat::Off, 1));
    assert_eq!(logs("[]").format, LogFormat::Off);
}

#[test]
fn several_logs_stand_beside_each_other() {
    let several = logs(
        r#"
  - {format: text}
  - {path: /dev/stdout, text_format: "%REQ(:PATH)% %START_TIME(%s)%"}
  - {path: /dev/stderr, json_format: {s: "%RESPONSE_CODE%", n: 3, b: true, in: {l: [a, "%PROTOCOL%"]}}, omit_empty_values: true,
     filter: {status_codes: [0, 400-599], response_flags: [UF, DENY], expression: "response.code >= 400 || connection.mtls == false"}}
  - {format: istio-json}"#,
    );
    assert_eq!((several.format, several.requests.len()), (LogFormat::Text, 3));
    let [text, json, istio] = &several.requests[..] else {
        panic!()
    };
    assert!(matches!(lines_of(text), RequestFormat::Text { omits_empty: false, .. }) && text.filter.is_empty());
    let RequestFormat::Json {
        omits_empty: true,
        format,
    } = lines_of(json)
    else {
        panic!("{json:?}")
    };
    assert!(format!("{format:?}").contains("\"n\": 3, \"b\": true"), "{format:?}");
    assert_eq!(json.filter.status_codes, [0..=0, 400..=599]);
    assert_eq!(json.filter.response_flags.as_ref().unwrap().len(), 2);
    assert_eq!(
        json.filter.expression.as_ref().unwrap().text(),
        "response.code >= 400 || connection.mtls == false"
    );
    assert!(matches!(
        lines_of(istio),
        RequestFormat::Json { omits_empty: false, .. }
    ));
    // It is in the admin view.
    assert!(
        serde_json::to_string(&several)
            .unwrap()
            .contains("connection.mtls == false")
    );
}

#[test]
fn what_is_wrong_is_named() {
    refused(
        r#"node:
  access_log:
  - {format: text}
  - {format: json, filter: {status_codes: [404]}}
  - {format: istio, text_format: x}
  - {text_format: "%REQ(:PATH)% %NOTHING%"}
  - {json_format: {a: {b: "100%"}, c: ["%START_TIME(%Q)%"]}}
  - {text_format: x, omit_empty_values: maybe, path: ''}
  - {text_format: x, filter: {status_codes: [600, 500-400, x], response_flags: [NOPE], expression: "response.cod > 3"}}
  - {text_format: x, filter: {expression: "request.headers.all(h, true)"}}"#,
        "
            node.access_log[1].filter |  | proxy's own | text_format
            node.access_log[1] |  | access_log[0] is in the proxy's own format already | remove one
            node.access_log[2] |  | several formats | one of `format`, `text_format`
            node.access_log[3].text_format | %REQ(:PATH)% %NOTHING% | `%NOTHING%`, which is not supported | BYTES_SENT
            node.access_log[4].json_format.a.b | 100% | begins nothing | write %%
            node.access_log[5].path |  | is empty | `-`
            node.access_log[5].omit_empty_values | maybe | not a known value | true, false
            node.access_log[6].filter.status_codes[0] | 600 | is no status | 500-599
            node.access_log[6].filter.status_codes[1] | 500-400 | is no status | 500-599
            node.access_log[6].filter.status_codes[2] | x | is no status | 500-599
            node.access_log[6].filter.response_flags[0] | NOPE | no response flag | URX
            node.access_log[6].filter.expression | response.cod > 3 | no attribute of Envoy's | response.code
            node.access_log[7].filter.expression | request.headers.all(h, true) | a loop | compare attributes",
    );
    refused(
        "node: {access_log: {text_format: '%TRAILER(a b)%'}}",
        "node.access_log.text_format | %TRAILER(a b)% | no name | %REQ(x-user)%",
    );
}
