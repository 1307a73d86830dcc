//! `envoy.service.auth.v3`, by another hand than the proxy's.

use std::collections::HashMap;

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    pub(crate) source: Option<Peer>,
    #[prost(message, optional, tag = "2")]
    pub(crate) destination: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub(crate) request: Option<Request>,
    #[prost(map = "string, string", tag = "10")]
    pub(crate) context_extensions: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Peer {
    #[prost(message, optional, tag = "1")]
    pub(crate) address: Option<Address>,
    #[prost(string, tag = "2")]
    pub(crate) service: String,
    #[prost(string, tag = "4")]
    pub(crate) principal: String,
    #[prost(string, tag = "5")]
    pub(crate) certificate: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Address {
    #[prost(message, optional, tag = "1")]
    pub(crate) socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SocketAddress {
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(uint32, tag = "3")]
    pub(crate) port_value: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(message, optional, tag = "1")]
    pub(crate) time: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    pub(crate) http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HttpRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(map = "string, string", tag = "3")]
    pub(crate) headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    pub(crate) path: String,
    #[prost(string, tag = "5")]
    pub(crate) host: String,
    #[prost(string, tag = "6")]
    pub(crate) scheme: String,
    #[prost(string, tag = "7")]
    pub(crate) query: String,
    #[prost(int64, tag = "9")]
    pub(crate) size: i64,
    #[prost(string, tag = "10")]
    pub(crate) protocol: String,
    #[prost(string, tag = "11")]
    pub(crate) body: String,
    #[prost(bytes = "vec", tag = "12")]
    pub(crate) raw_body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Code>,
    #[prost(oneof = "HttpResponse", tags = "2, 3, 5")]
    pub(crate) http_response: Option<HttpResponse>,
    /// `google.protobuf.Struct`.
    #[prost(message, optional, tag = "4")]
    pub(crate) dynamic_metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Struct {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) fields: HashMap<String, Any>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6")]
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Kind {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Truth(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<Any>,
}

/// A struct of these.
pub(crate) fn fields<const COUNT: usize>(fields: [(&str, Kind); COUNT]) -> Struct {
    let fields = fields.into_iter();
    Struct {
        fields: fields
            .map(|(name, kind)| (name.to_owned(), Any { kind: Some(kind) }))
            .collect(),
    }
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum HttpResponse {
    #[prost(message, tag = "2")]
    Denied(DeniedHttpResponse),
    #[prost(message, tag = "3")]
    Ok(OkHttpResponse),
    #[prost(message, tag = "5")]
    Error(DeniedHttpResponse),
}

/// `google.rpc.Status`, and `envoy.type.v3.HttpStatus`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Code {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeniedHttpResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Code>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    pub(crate) body: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OkHttpResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    pub(crate) headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) response_headers_to_add: Vec<HeaderValueOption>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) query_parameters_to_set: Vec<Pair>,
    #[prost(string, repeated, tag = "8")]
    pub(crate) query_parameters_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Pair>,
    /// `google.protobuf.BoolValue`.
    #[prost(message, optional, tag = "2")]
    pub(crate) append: Option<bool>,
    #[prost(int32, tag = "3")]
    pub(crate) append_action: i32,
}

/// `HeaderValue`, and `QueryParameter`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pair {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// A field that is changed in one of the ways that there are: `append` of old, or an action by its number.
pub(crate) fn header(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(pair(key, value)),
        append,
        append_action,
    }
}

pub(crate) fn pair(key: &str, value: &str) -> Pair {
    Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

impl CheckRequest {
    /// What is the same whoever asks.
    pub(crate) fn told(&self) -> String {
        let attributes = self.attributes.clone().unwrap_or_default();
        let mut context: Vec<String> = attributes
            .context_extensions
            .iter()
            .map(|(name, value)| format!("\ncontext {name}={value}"))
            .collect();
        context.sort();
        let request = attributes.request.unwrap_or_default();
        assert!(request.time.is_some_and(|time| time.seconds > 1_500_000_000), "no time");
        let http = request.http.unwrap_or_default();
        assert!(http.id.parse::<u64>().is_ok(), "{}", http.id);
        let mut headers: Vec<String> = http
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        headers.sort();
        let peer = |peer: Option<Peer>| {
            let peer = peer.unwrap_or_default();
            let at = peer.address.unwrap_or_default().socket_address.unwrap_or_default();
            assert!(at.port_value > 0);
            (at.address, peer.principal, peer.service)
        };
        let (source, _) = (peer(attributes.source), peer(attributes.destination));
        format!(
            "{} {} {} {} {} q={} from {source:?}\n{}size {} body {:?} raw {:?}{}",
            http.method,
            http.path,
            http.host,
            http.scheme,
            http.protocol,
            http.query,
            headers.concat(),
            http.size,
            http.body,
            String::from_utf8_lossy(&http.raw_body),
            context.concat()
        )
    }
}
