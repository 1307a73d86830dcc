use tempfile::TempDir;
use underpass_config::http::{Format, Http, RouteTable, Stage};
use underpass_config::{
    Config, Expression, ISTIO_TEXT, JsonFormat, Listener, ListenerProtocol, LogFilter, LogTo, RequestFormat,
};

use super::*;
use crate::entrance::Entrance;
use crate::export::otlp;
use crate::flow_table::FlowTable;
use crate::node::Node;
use crate::offload::Offload;
use crate::source::Source;
use crate::telemetry::{AccessLogWriter, Telemetry};

/// The mesh knows who is at both ends.
const MESH: &str = "workloads:\n- {name: client, namespace: shop, addresses: [127.0.0.1]}\n- {name: db, namespace: data, addresses: [10.0.0.9]}\n";

fn session() -> Session {
    let config = Config::from_yaml(MESH).unwrap();
    let flows = Arc::new(FlowTable::new(1));
    let offload = Arc::new(Offload::default());
    let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::off()));
    let source = Source::by_address(&config.mesh, &config.node, "127.0.0.1:4000".parse().unwrap());
    Session {
        node: Node::new(config, None, None, flows, offload, telemetry),
        entrance: Entrance::Plain(Arc::new(Listener {
            name: "test".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            protocol: ListenerProtocol::Socks5,
        })),
        source,
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        core: 0,
    }
}

fn completed(session: &Session) -> Carried<'_> {
    Carried {
        session,
        local: "10.96.0.1:5432".parse().unwrap(),
        cluster: Some("outbound|5432||db.data.svc.cluster.local"),
        endpoint: Some("10.0.0.9:5432".parse().unwrap()),
        endpoint_local: Some("10.0.0.1:5555".parse().unwrap()),
        attempts: 1,
        received: 11,
        sent: 22,
        ending: Ending::Completed,
        detail: None,
        ended: session.started + Duration::from_millis(1500),
    }
}

fn failed(session: &Session) -> Carried<'_> {
    Carried {
        endpoint_local: None,
        attempts: 3,
        received: 0,
        sent: 0,
        ending: Ending::ConnectFailed,
        detail: Some("Connection refused"),
        ..completed(session)
    }
}

fn line(format: &str, carried: &Carried<'_>) -> String {
    Format::parse(format, Stage::Log).unwrap().line(carried, "-")
}

/// As Envoy's, whose lines about connections look like this.
#[test]
fn a_connection_is_told_of_in_istios_format() {
    let session = session();
    assert_eq!(
        line(ISTIO_TEXT, &completed(&session)),
        "[1970-01-01T00:16:40.000Z] \"- - -\" 0 - - - \"-\" 11 22 1500 - \"-\" \"-\" \"-\" \"-\" \"10.0.0.9:5432\" \
         outbound|5432||db.data.svc.cluster.local 10.0.0.1:5555 10.96.0.1:5432 127.0.0.1:4000 - -\n"
    );
}

/// Mutant: the endpoint that could not be connected to is told of as one that was.
#[test]
fn what_could_not_be_connected_to_is_told_of_as_that() {
    let session = session();
    let told = "%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS% \
        %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%";
    assert_eq!(
        line(told, &failed(&session)),
        "UF UpstreamConnectionFailure Connection_refused 10.0.0.9:5432 - - 3"
    );
    assert_eq!(
        line("%UPSTREAM_REMOTE_ADDRESS% %RESPONSE_FLAGS%", &completed(&session)),
        "10.0.0.9:5432 -"
    );
    let peers = "%FILTER_STATE(downstream_peer_obj:FIELD:name)% %FILTER_STATE(upstream_peer_obj:FIELD:namespace)%";
    assert_eq!(line(peers, &completed(&session)), "client data");
    // Whatever is of requests is not known.
    let of_requests = "%PROTOCOL% %REQ(x-a)% %RESP(x-a)% %ROUTE_NAME% %TRACE_ID% %RESPONSE_CODE_DETAILS%";
    assert_eq!(line(of_requests, &completed(&session)), "- - - - - -");
}

/// Mutant: `Carried::log` asks the node's logs.
#[test]
fn it_is_written_to_the_logs_of_its_chain_as_their_filters_say() {
    let (session, directory) = (session(), TempDir::new().unwrap());
    let path = directory.path().join("log");
    let log = |expression: &str| RequestLog {
        to: LogTo::File {
            path: path.clone(),
            format: RequestFormat::Text {
                format: Format::parse("%BYTES_SENT% %RESPONSE_FLAGS%\n", Stage::Log).unwrap(),
                omits_empty: false,
            },
        },
        filter: LogFilter {
            expression: Some(Expression::parse(expression).unwrap()),
            ..LogFilter::default()
        },
    };
    // Istio's example; and one that is for failures.
    let own = Arc::new(vec![
        log("response.code >= 400 || connection.mtls == false"),
        log("connection.mtls == true"),
    ]);
    let mut table = RouteTable::new("t".into(), Vec::new());
    table.logs = Some(own.clone());
    let mut http = Http::default();
    http.tables.insert("t".into(), Arc::new(table));
    let telemetry = &session.node.telemetry;
    telemetry.prepare(&http);
    completed(&session).log(&own);
    failed(&session).log(&own);
    telemetry.access_log.close();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "22 -\n0 UF\n");
}

#[test]
fn others_that_keep_logs_are_told_of_it() {
    let session = session();
    let export = underpass_config::Export {
        cluster: "c".into(),
        protocol: underpass_config::ExportProtocol::Grpc,
        authority: http::HeaderValue::from_static("c"),
        headers: Vec::new(),
        timeout: Duration::from_secs(1),
        batching: underpass_config::Batching::LOGS,
    };
    let text = |text: &str| JsonFormat::Text(Format::parse(text, Stage::Log).unwrap());
    let log = OtlpLog {
        export: export.clone(),
        log_name: "l".into(),
        has_builtin_labels: true,
        resource: Vec::new(),
        body: Some(text("%BYTES_RECEIVED%")),
        attributes: vec![("code".into(), text("%RESPONSE_CODE%"))],
    };
    let record = otlp::LogRecord::decode(&*completed(&session).log_record(&log)).unwrap();
    let told = |value: Option<otlp::AnyValue>| format!("{:?}", value.unwrap().value.unwrap());
    assert_eq!(record.time_unix_nano, 1_000_000_000_000);
    assert_eq!(told(record.body), "StringValue(\"11\")");
    assert_eq!(told(record.attributes[0].value.clone()), "StringValue(\"0\")");
    let log = GrpcLog {
        export,
        log_name: "l".into(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_trailers: Vec::new(),
    };
    let entry = als::HttpAccessLogEntry::decode(&*failed(&session).http_entry(&log)).unwrap();
    let common = entry.common_properties.unwrap();
    assert_eq!(common.upstream_transport_failure_reason, "Connection refused");
    assert_eq!(common.upstream_cluster, "outbound|5432||db.data.svc.cluster.local");
    assert_eq!(
        (common.duration.unwrap().seconds, common.upstream_request_attempt_count),
        (1, 3)
    );
    assert!(common.upstream_local_address.is_none() && common.response_flags.is_some());
    assert_eq!(entry.response.unwrap().response_code, None);
}
