//! OTLP, and Envoy's access log service, by another hand than the proxy's.

use std::collections::{BTreeMap, HashMap};

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExportTraces {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(crate) trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    pub(crate) flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) value: Option<Any>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    List(List),
    #[prost(message, tag = "6")]
    Map(Map),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Map {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExportLogs {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    pub(crate) log_records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogRecord {
    #[prost(fixed64, tag = "1")]
    pub(crate) time: u64,
    #[prost(message, optional, tag = "5")]
    pub(crate) body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    pub(crate) span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StreamAccessLogs {
    #[prost(message, optional, tag = "1")]
    pub(crate) identifier: Option<Identifier>,
    #[prost(message, optional, tag = "2")]
    pub(crate) http_logs: Option<HttpLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Identifier {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(crate) log_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HttpLogs {
    #[prost(message, repeated, tag = "1")]
    pub(crate) log_entry: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    #[prost(message, optional, tag = "1")]
    pub(crate) common: Option<Common>,
    #[prost(int32, tag = "2")]
    pub(crate) protocol: i32,
    #[prost(message, optional, tag = "3")]
    pub(crate) request: Option<EntryRequest>,
    #[prost(message, optional, tag = "4")]
    pub(crate) response: Option<EntryResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Common {
    #[prost(message, optional, tag = "2")]
    pub(crate) client: Option<Address>,
    #[prost(message, optional, tag = "3")]
    pub(crate) local: Option<Address>,
    #[prost(message, optional, tag = "5")]
    pub(crate) started: Option<Time>,
    #[prost(message, optional, tag = "13")]
    pub(crate) endpoint: Option<Address>,
    #[prost(string, tag = "15")]
    pub(crate) cluster: String,
    #[prost(message, optional, tag = "16")]
    pub(crate) flags: Option<Flags>,
    #[prost(string, tag = "18")]
    pub(crate) transport_failure: String,
    #[prost(string, tag = "19")]
    pub(crate) route: String,
    #[prost(message, optional, tag = "20")]
    pub(crate) direct_client: Option<Address>,
    #[prost(message, optional, tag = "23")]
    pub(crate) duration: Option<Time>,
    #[prost(uint32, tag = "24")]
    pub(crate) attempts: u32,
    #[prost(string, tag = "26")]
    pub(crate) stream_id: String,
}

/// Those that these tests come to.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Flags {
    #[prost(bool, tag = "2")]
    pub(crate) no_healthy_upstream: bool,
    #[prost(bool, tag = "6")]
    pub(crate) upstream_connection_failure: bool,
    #[prost(bool, tag = "9")]
    pub(crate) no_route_found: bool,
    #[prost(bool, tag = "16")]
    pub(crate) upstream_retry_limit_exceeded: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Address {
    #[prost(message, optional, tag = "1")]
    pub(crate) socket: Option<Socket>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Socket {
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(uint32, tag = "3")]
    pub(crate) port: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Time {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryRequest {
    #[prost(int32, tag = "1")]
    pub(crate) method: i32,
    #[prost(string, tag = "2")]
    pub(crate) scheme: String,
    #[prost(string, tag = "3")]
    pub(crate) authority: String,
    #[prost(string, tag = "5")]
    pub(crate) path: String,
    #[prost(string, tag = "6")]
    pub(crate) user_agent: String,
    #[prost(string, tag = "7")]
    pub(crate) referer: String,
    #[prost(string, tag = "8")]
    pub(crate) forwarded_for: String,
    #[prost(string, tag = "9")]
    pub(crate) request_id: String,
    #[prost(string, tag = "10")]
    pub(crate) original_path: String,
    #[prost(uint64, tag = "12")]
    pub(crate) body: u64,
    #[prost(map = "string, string", tag = "13")]
    pub(crate) headers: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) code: Option<Number>,
    #[prost(uint64, tag = "3")]
    pub(crate) body: u64,
    #[prost(map = "string, string", tag = "4")]
    pub(crate) headers: HashMap<String, String>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) trailers: HashMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) details: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Number {
    #[prost(uint32, tag = "1")]
    pub(crate) value: u32,
}

/// Texts by their names; each name has to be there once.
pub(crate) fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for one in attributes {
        let value = match one.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Any::Text(text)) => text.clone(),
            other => format!("{other:?}"),
        };
        assert!(
            texts.insert(one.key.clone(), value).is_none(),
            "{} is there twice",
            one.key
        );
    }
    texts
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
