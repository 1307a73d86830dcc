//! Traces and the logs that others keep: as Envoy 1.40 has them with the same configuration; by a real collector; and when there is none.

pub(crate) mod collector;
mod failures;
mod logs;
pub(crate) mod messages;
mod place;
mod real;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use underpass_tests::{Need, available, wait};

use messages::{Span, hex, texts};
use place::{Passed, Place, Side, Table};

/// A request to a table.
struct Ask {
    table: usize,
    path: &'static str,
    lines: String,
    /// How many spans there are of it.
    spans: usize,
}

const TAGS: usize = 0;
const TRIES: usize = 1;
const EGRESS: usize = 2;
const NONE: usize = 3;
const UNASKED: usize = 4;
const BY_HTTP: usize = 5;
const SOME: usize = 6;

/// Tags in our words and in Envoy's.
fn tags() -> (Value, Value) {
    let metadata = |key: &str, name: &str, default: &str| {
        (
            json!({"metadata": {"key": key, "path": [name], "default_value": default}}),
            json!({"metadata": {"kind": {"request": {}}, "metadata_key": {"key": key, "path": [{"key": name}]}, "default_value": default}}),
        )
    };
    let header = |name: &str, default: &str| {
        (
            json!({"header": {"name": name, "default_value": default}}),
            json!({"request_header": {"name": name, "default_value": default}}),
        )
    };
    let told = |format: &str| (json!({"formatter": {"value": format}}), json!({"value": format}));
    let environment = |name: &str| {
        (
            json!({"environment": {"name": name, "default_value": "unset"}}),
            json!({"environment": {"name": name, "default_value": "unset"}}),
        )
    };
    let all = [
        (
            "env",
            (
                json!({"literal": {"value": "test"}}),
                json!({"literal": {"value": "test"}}),
            ),
        ),
        (
            "component",
            (
                json!({"literal": {"value": "mine"}}),
                json!({"literal": {"value": "mine"}}),
            ),
        ),
        ("tenant", header("x-tenant", "none")),
        ("undefaulted", header("x-tenant", "")),
        ("home", environment("HOME")),
        ("unset", environment("UNDERPASS_NO_SUCH_VARIABLE")),
        (
            "trial.name",
            metadata(
                "envoy.filters.http.rbac",
                "istio_dry_run_deny_shadow_effective_policy_id",
                "",
            ),
        ),
        (
            "trial.result",
            metadata("envoy.filters.http.rbac", "istio_dry_run_deny_shadow_engine_result", ""),
        ),
        ("no.metadata", metadata("nobody", "nothing", "by default")),
        ("told", told("%RESPONSE_CODE% of %REQ(x-none)%%REQ(x-tenant)%")),
        ("untold", told("%REQ(x-none)%")),
        (
            "istio.source_workload",
            told("%FILTER_STATE(downstream_peer_obj:FIELD:workload)%"),
        ),
    ];
    let ours = all.iter().map(|(name, (ours, _))| ((*name).to_owned(), ours.clone()));
    let envoys = all.iter().map(|(name, (_, envoys))| {
        let mut tag = envoys.clone();
        tag["tag"] = json!(name);
        tag
    });
    (Value::Object(ours.collect()), envoys.collect())
}

fn tables() -> Vec<Table> {
    let table = |name, ours: Value, envoys: Value| Table {
        name,
        ours,
        envoys,
        direction: "INBOUND",
        request_id: Value::Null,
        is_by_http: false,
    };
    let (ours, envoys) = tags();
    let percent = |value: f64| json!({"random_sampling": {"value": value}});
    let uuid = "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
    let tried = json!({"literal": {"value": "tried"}});
    vec![
        table("tags", json!({"custom_tags": ours}), json!({"custom_tags": envoys})),
        table(
            "tries",
            json!({"spawn_upstream_span": "true", "max_path_tag_length": "10", "custom_tags": {"t": tried}}),
            json!({"spawn_upstream_span": true, "max_path_tag_length": 10, "custom_tags": [{"tag": "t", "literal": {"value": "tried"}}]}),
        ),
        Table {
            direction: "OUTBOUND",
            ..table("egress", json!({"direction": "egress"}), json!({}))
        },
        table("none", json!({"random_sampling": "0"}), percent(0.0)),
        Table {
            request_id: json!({"typed_config": {"@type": uuid, "use_request_id_for_trace_sampling": false}}),
            ..table(
                "unasked",
                json!({"random_sampling": "0", "use_request_id_for_trace_sampling": "false"}),
                percent(0.0),
            )
        },
        Table {
            is_by_http: true,
            ..table("by-http", json!({}), json!({}))
        },
        table(
            "some",
            json!({"random_sampling": "12.34", "overall_sampling": "50", "client_sampling": "0"}),
            json!({"random_sampling": {"value": 12.34}, "overall_sampling": {"value": 50}, "client_sampling": {"value": 0}}),
        ),
    ]
}

/// A trace that nobody else's request comes with.
fn parent(number: u8, flags: &str) -> String {
    format!("traceparent: 00-0af7651916cd43dd8448eb211c8031{number:02x}-b7ad6b7169203331-{flags}\r\n")
}

fn asked() -> Vec<Ask> {
    let of = |table, path, lines: &str, spans| Ask {
        table,
        path,
        lines: lines.to_owned(),
        spans,
    };
    let sampled = parent(1, "01") + "tracestate: a=b\r\ntracestate: c=d\r\n";
    let unsampled = parent(2, "00") + "tracestate: a=b\r\n";
    let grpc = "content-type: application/grpc\r\nte: trailers\r\ngrpc-timeout: 1S\r\n";
    let mut asks = vec![
        of(TAGS, "/ok", "", 1),
        of(
            TAGS,
            "/ok",
            "x-tenant: gold\r\nx-client-trace-id: mine\r\nx-envoy-downstream-service-cluster: theirs\r\n",
            1,
        ),
        of(TAGS, "/ok", &sampled, 1),
        of(TAGS, "/ok", &unsampled, 0),
        of(TAGS, "/ok", "tracestate: a=b\r\n", 1),
        of(TAGS, "/ok", "traceparent: garbage\r\ntracestate: a=b\r\n", 0),
        of(
            TAGS,
            "/ok",
            "traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01\r\n",
            0,
        ),
        of(TAGS, "/ok", &parent(3, "01").replace("00-0af", "ff-0AF"), 1),
        of(TAGS, "/ok", &parent(4, "03"), 1),
        of(TAGS, "/direct", "", 1),
        of(TAGS, "/direct", &parent(5, "01"), 1),
        of(TAGS, "/nowhere", "", 1),
        of(TAGS, "/rewrite/x", "x-tenant: gold\r\n", 1),
        of(TAGS, "/rewrite/x", "x-envoy-decorator-operation: said\r\n", 1),
        of(TAGS, "/rewrite/x", "x-envoy-decorator-operation: \r\n", 1),
        of(TAGS, "/quiet", "", 1),
        of(TAGS, "/shown", "", 1),
        of(TAGS, "/void", "", 1),
        of(TAGS, "/closed", "", 1),
        of(TAGS, "/retried", "x-do: 503\r\n", 1),
        of(TAGS, "/ok", "x-do: 503\r\n", 1),
        of(TAGS, "/ok", "x-do: 404\r\n", 1),
        of(TAGS, "/ok/tried", "", 1),
        of(TAGS, "/ok", grpc, 1),
        of(TAGS, "/ok", &format!("{grpc}x-do: grpc\r\n"), 1),
        of(TRIES, "/ok/longer/path", "", 2),
        of(TRIES, "/retried", "x-do: 503\r\n", 3),
        of(
            TRIES,
            "/retried",
            &(parent(6, "01") + "x-do: 503 first 1\r\nx-id: tried\r\n"),
            3,
        ),
        of(TRIES, "/closed", "", 2),
        of(TRIES, "/void", "", 1),
        of(TRIES, "/direct", "", 1),
        of(TRIES, "/ok", &parent(7, "00"), 0),
        of(TRIES, "/ok", "x-do: 404\r\n", 2),
        of(EGRESS, "/ok", "", 1),
        of(EGRESS, "/ok", "x-envoy-decorator-operation: said\r\n", 1),
        of(EGRESS, "/ok", "x-do: 404\r\n", 1),
        of(EGRESS, "/quiet", "", 1),
        of(EGRESS, "/ok", &format!("{grpc}x-do: grpc\r\n"), 1),
        of(TRIES, "/ok", "x-do: close\r\n", 2),
        of(EGRESS, "/nowhere", "", 1),
        of(NONE, "/ok", "", 0),
        of(NONE, "/ok", "x-envoy-force-trace: 1\r\n", 0),
        of(NONE, "/ok", "x-client-trace-id: 1\r\n", 1),
        of(NONE, "/ok", &parent(8, "01"), 0),
        of(
            NONE,
            "/ok",
            &(parent(9, "01") + "x-request-id: a4b0a0c0-1111-9111-8111-111111111111\r\n"),
            1,
        ),
        of(
            UNASKED,
            "/ok",
            "x-request-id: a4b0a0c0-1111-4111-8111-111111111111\r\n",
            1,
        ),
        of(UNASKED, "/ok", "x-request-id: short\r\n", 1),
        of(BY_HTTP, "/ok", "", 1),
    ];
    for (id, is_all, is_none) in [
        ("a4b0a0c0-1111-4111-8111-111111111111", 1, 0),
        ("a4b0a0c0-1111-9111-8111-111111111111", 1, 1),
        ("a4b0a0c0-1111-a111-8111-111111111111", 1, 1),
        ("a4b0a0c0-1111-b111-8111-111111111111", 1, 1),
        ("A4B0A0C0-1111-7111-8111-111111111111", 1, 0),
        ("short", 0, 0),
        ("abcdefgh-1111-4111-8111-111111111111", 0, 0),
        ("a4b0a0c0-1111-4111-8111-1111111111110", 1, 0),
    ] {
        let line = format!("x-request-id: {id}\r\n");
        asks.push(of(TAGS, "/ok", &line, is_all));
        asks.push(of(NONE, "/ok", &line, is_none));
    }
    // By chance, which is the id's.
    for number in [
        0,
        1,
        1233,
        1234,
        1249,
        1250,
        9999,
        10_000,
        11_233,
        11_260,
        0xffff_ffff_u32,
    ] {
        let is_traced = number % 10_000 < 1234 && number % 100 < 50;
        let line = format!("x-client-trace-id: 1\r\nx-request-id: {number:08x}-1111-4111-8111-111111111111\r\n");
        asks.push(of(SOME, "/ok", &line, usize::from(is_traced)));
    }
    asks
}

/// What is seen of one request, without what differs from one run to the next.
#[derive(Debug, PartialEq)]
struct Account {
    status: u16,
    /// What the endpoint was told, try by try.
    told: Vec<BTreeMap<&'static str, String>>,
    answered_operation: Option<String>,
    spans: Vec<SpanAccount>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SpanAccount {
    name: String,
    kind: i32,
    state: String,
    status: i32,
    flags: u32,
    tags: BTreeMap<String, String>,
}

const TOLD: [&str; 7] = [
    "traceparent",
    "tracestate",
    "x-request-id",
    "x-client-trace-id",
    "x-envoy-force-trace",
    "x-envoy-decorator-operation",
    "b3",
];

fn field(heard: &str, name: &str) -> Option<String> {
    let line = heard
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.map(str::to_owned)
}

/// An id that the client has not given is told apart from others only by what it says of the trace.
fn request_id(id: &str, ask: &Ask) -> String {
    match ask.lines.contains("x-request-id") || id.len() != 36 {
        true => id.to_owned(),
        false => format!("RANDOM {}", &id[14..15]),
    }
}

fn account(side: &Side, ask: &Ask, passed: &Passed, spans: &[Span]) -> Account {
    let given = ask.lines.to_ascii_lowercase();
    let root = spans
        .iter()
        .find(|span| texts(&span.attributes).contains_key("user_agent"));
    let mut told = Vec::new();
    for (at, heard) in passed.heard.iter().enumerate() {
        let mut fields = BTreeMap::new();
        for name in TOLD {
            let Some(mut value) = field(heard, name) else { continue };
            match name {
                "x-request-id" => value = request_id(&value, ask),
                "traceparent" if !given.contains(&value) => {
                    let parts: Vec<&str> = value.split('-').collect();
                    let trace = if given.contains(parts[1]) { parts[1] } else { "RANDOM" };
                    if !spans.is_empty() {
                        // It is the span that was told of, or that of this try.
                        let ids = tries(spans);
                        let span = ids.get(at).copied().or(root).expect("a span");
                        assert_eq!((parts[1], parts[2]), (&*hex(&span.trace_id), &*hex(&span.span_id)));
                    }
                    value = format!("{trace}-SPAN-{}", parts[3]);
                }
                _ => {}
            }
            // Envoy sends an empty one where there is nothing to tell.
            if name != "tracestate" || !value.is_empty() {
                fields.insert(name, value);
            }
        }
        told.push(fields);
    }
    let mut accounts: Vec<SpanAccount> = spans
        .iter()
        .map(|span| span_account(side, ask, passed, span, root))
        .collect();
    accounts.sort();
    Account {
        status: passed.seen.status,
        told,
        answered_operation: passed.seen.header("x-envoy-decorator-operation").map(str::to_owned),
        spans: accounts,
    }
}

/// Those of tries, in their order.
fn tries(spans: &[Span]) -> Vec<&Span> {
    let mut tries: Vec<&Span> = spans.iter().filter(|span| span.name.starts_with("router ")).collect();
    tries.sort_by_key(|span| texts(&span.attributes).get("retry.count").cloned().unwrap_or_default());
    tries
}

fn span_account(side: &Side, ask: &Ask, passed: &Passed, span: &Span, root: Option<&Span>) -> SpanAccount {
    assert!(
        span.trace_id.len() == 16 && span.span_id.len() == 8 && span.start <= span.end,
        "{span:?}"
    );
    let root = root.expect("there is the request's");
    assert_eq!(span.trace_id, root.trace_id);
    let parent = hex(&span.parent_span_id);
    let is_root = span.span_id == root.span_id;
    match (is_root, ask.lines.contains("traceparent")) {
        (true, true) => assert_eq!(parent, "b7ad6b7169203331"),
        (true, false) => assert_eq!(parent, ""),
        (false, _) => assert_eq!(parent, hex(&root.span_id)),
    }
    let mut tags = texts(&span.attributes);
    if let Some(id) = tags.get_mut("guid:x-request-id") {
        *id = request_id(id, ask);
    }
    if let Some(size) = tags.remove("response_size") {
        assert_eq!(size, passed.seen.body.len().to_string(), "{span:?}");
    }
    for value in tags.values_mut() {
        for (text, name) in &side.names {
            *value = value.replace(text, name);
        }
    }
    SpanAccount {
        name: span.name.clone(),
        kind: span.kind,
        state: span.trace_state.clone(),
        status: span.status.as_ref().map_or(0, |status| status.code),
        flags: span.flags,
        tags,
    }
}

#[test]
fn traces_are_envoys() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start(&tables(), &[]);
    let asks = asked();
    let mut passed = Vec::new();
    for (number, ask) in asks.iter().enumerate() {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: web.test:81\r\nuser-agent: n-{number}\r\n{}\r\n",
            ask.path, ask.lines
        );
        passed.push(place.sides().map(|side| side.ask(&place.client, ask.table, &request)));
    }
    let mut differing = Vec::new();
    for (number, (ask, passed)) in asks.iter().zip(&passed).enumerate() {
        let agent = format!("n-{number}");
        let accounts = [0, 1].map(|at| {
            let side = place.sides()[at];
            let what = format!("the spans of {} {:?} at {at}", ask.path, ask.lines);
            wait::eventually(wait::SOON, &what, || side.collector.spans_of(&agent).len() >= ask.spans);
            let spans = side.collector.spans_of(&agent);
            assert_eq!(spans.len(), ask.spans, "{what}");
            account(side, ask, &passed[at], &spans)
        });
        if accounts[0] != accounts[1] {
            differing.push(format!(
                "{} {} {:?}\n   ours: {:?}\n  envoy: {:?}",
                tables()[ask.table].name,
                ask.path,
                ask.lines,
                accounts[0],
                accounts[1]
            ));
        }
    }
    assert!(
        differing.is_empty(),
        "{} requests differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
    // Whom they are of, and by what they came.
    for side in place.sides() {
        let told = side.collector.told();
        let resource = texts(&told.spans[0].0.attributes);
        assert_eq!(resource["service.name"], "shop");
        assert!(resource.contains_key("telemetry.sdk.name"), "{resource:?}");
        for head in &told.heads {
            assert!(
                head.contains("collector.test") && head.to_ascii_lowercase().contains("secret"),
                "{head}"
            );
        }
    }
}
