//! A collector of spans and logs, by gRPC and, at another port, by HTTP; it keeps what it was told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::runtime::Handle;
use underpass_tests::Host;

use super::messages::{self, texts};
use super::messages::{ExportLogs, ExportTraces, Identifier, LogRecord, Resource, Span, StreamAccessLogs};

const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
const ENTRIES: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// What a collector was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) spans: Vec<(Resource, Span)>,
    pub(crate) logs: Vec<(Resource, LogRecord)>,
    pub(crate) entries: Vec<(Identifier, messages::Entry)>,
    /// The heads of the messages.
    pub(crate) heads: Vec<String>,
}

/// A running collector. It ends with the test's process.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    told: Arc<Mutex<Told>>,
}

impl Collector {
    pub(crate) fn start(runtime: &Handle, host: &Host) -> Self {
        let (grpc, http) = (host.listen(4317), host.listen(4318));
        let collector = Self {
            grpc: grpc.local_addr().expect("a socket"),
            http: http.local_addr().expect("a socket"),
            told: Arc::default(),
        };
        grpc.set_nonblocking(true).expect("a socket");
        let _inside = runtime.enter();
        let grpc = tokio::net::TcpListener::from_std(grpc).expect("a socket");
        let told = collector.told.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = grpc.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(by_grpc(request, respond, told.clone()));
                    }
                });
            }
        });
        let told = collector.told.clone();
        thread::spawn(move || {
            for stream in http.incoming().flatten() {
                let told = told.clone();
                thread::spawn(move || while by_http(&stream, &told).is_some() {});
            }
        });
        collector
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder panics")
    }

    /// The spans of requests with this user agent, and those below them.
    pub(crate) fn spans_of(&self, agent: &str) -> Vec<Span> {
        let told = self.told();
        let root = told.spans.iter().map(|(_, span)| span).find(|span| {
            texts(&span.attributes)
                .get("user_agent")
                .is_some_and(|said| said == agent)
        });
        let Some(root) = root else { return Vec::new() };
        let below = |span: &&Span| span.span_id == root.span_id || span.parent_span_id == root.span_id;
        told.spans.iter().map(|(_, span)| span).filter(below).cloned().collect()
    }
}

impl Told {
    /// Hears a message; `identifier` is what its stream has begun with.
    fn hear(&mut self, path: &str, message: &[u8], identifier: &mut Identifier) {
        match path {
            TRACES | "/v1/traces" => {
                for spans in ExportTraces::decode(message).expect("spans").resource_spans {
                    let resource = spans.resource.unwrap_or_default();
                    let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
                    self.spans.extend(spans.map(|span| (resource.clone(), span)));
                }
            }
            LOGS => {
                for logs in ExportLogs::decode(message).expect("logs").resource_logs {
                    let resource = logs.resource.unwrap_or_default();
                    let records = logs.scope_logs.into_iter().flat_map(|scope| scope.log_records);
                    self.logs.extend(records.map(|record| (resource.clone(), record)));
                }
            }
            ENTRIES => {
                let message = StreamAccessLogs::decode(message).expect("entries");
                if let Some(said) = message.identifier {
                    *identifier = said;
                }
                let entries = message.http_logs.unwrap_or_default().log_entry;
                self.entries
                    .extend(entries.into_iter().map(|entry| (identifier.clone(), entry)));
            }
            other => panic!("nobody asks for {other}"),
        }
    }
}

async fn by_grpc(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    told: Arc<Mutex<Told>>,
) -> Result<(), h2::Error> {
    let (head, mut stream) = request.into_parts();
    let path = head.uri.path().to_owned();
    let (mut body, mut identifier) = (Vec::new(), Identifier::default());
    {
        let mut told = told.lock().expect("no holder panics");
        told.heads.push(format!("{} {:?}", head.uri, head.headers));
    }
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut answer = respond.send_response(response, false)?;
    while let Some(bytes) = stream.data().await {
        let bytes = bytes?;
        stream.flow_control().release_capacity(bytes.len())?;
        body.extend_from_slice(&bytes);
        // A stream of messages need not end.
        while body.len() >= 5 {
            let length = u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize;
            if body.len() < 5 + length {
                break;
            }
            assert_eq!(body[0], 0, "it is not compressed");
            let message: Vec<u8> = body.drain(..5 + length).skip(5).collect();
            told.lock()
                .expect("no holder panics")
                .hear(&path, &message, &mut identifier);
        }
    }
    answer.send_data(vec![0; 5].into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    answer.send_trailers(trailers)
}

fn by_http(mut stream: &TcpStream, told: &Mutex<Told>) -> Option<()> {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head).ok().filter(|length| *length > 0)?;
    }
    let mut body = Vec::new();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse::<usize>().ok())?
    });
    match length {
        Some(length) => {
            body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
        }
        None => loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        },
    }
    let path = head.split(' ').nth(1)?.to_owned();
    {
        let mut told = told.lock().expect("no holder panics");
        told.hear(&path, &body, &mut Identifier::default());
        told.heads.push(head);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}
