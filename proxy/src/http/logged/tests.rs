//! Requests are told of in the logs of the table that they are routed by.

use std::time::SystemTime;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use underpass_config::http::{Format, Stage};
use underpass_config::{Config, Listener, ListenerProtocol, LogFilter, LogFormat, LogTo, RequestFormat, RequestLog};

use super::*;
use crate::entrance::Entrance;
use crate::flow_table::FlowTable;
use crate::http::{Downstream, serve};
use crate::node::Node;
use crate::offload::Offload;
use crate::session::Session;
use crate::source::Source;
use crate::stream::Stream;
use crate::telemetry::{AccessLogWriter, Telemetry};

const YAML: &str = "http: {routes: [{name: own, virtual_hosts: [{name: v, domains: ['*'], routes: [{direct: {status: 200}}]}]}, \
    {name: plain, virtual_hosts: [{name: v, domains: ['*'], routes: [{direct: {status: 204}}]}]}]}";

fn log(path: std::path::PathBuf) -> RequestLog {
    RequestLog {
        to: LogTo::File {
            path,
            format: RequestFormat::Text {
                format: Format::parse("%REQ(x-a)% %RESPONSE_CODE%\n", Stage::Log).unwrap(),
                omits_empty: false,
            },
        },
        filter: LogFilter::default(),
    }
}

/// One request, on a connection of its own, that goes through a table.
async fn ask(node: &Arc<Node>, table: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nx-a: b\r\nConnection: close\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    };
    let server = async {
        let (socket, peer) = listener.accept().await.unwrap();
        let socket = Stream::new(socket.into_std().unwrap().into()).unwrap();
        let config = &node.snapshot().config;
        let session = Session {
            node: node.clone(),
            entrance: Entrance::Plain(Arc::new(Listener {
                name: "test".into(),
                address,
                protocol: ListenerProtocol::Socks5,
            })),
            source: Source::by_address(&config.mesh, &config.node, peer),
            started: SystemTime::now(),
            core: 0,
        };
        assert!(
            serve(session, Downstream::Socket(socket), address, table.into(), None)
                .await
                .is_none()
        );
    };
    tokio::join!(client, server);
}

/// Mutant: `Record::new` takes the node's logs whatever the table has.
#[tokio::test]
async fn requests_are_told_of_in_their_tables_logs_or_else_in_the_nodes() {
    let directory = TempDir::new().unwrap();
    let [own, nodes] = ["own", "nodes"].map(|name| directory.path().join(name));
    let mut config = Config::from_yaml(YAML).unwrap();
    let mut settings = (*config.node).clone();
    settings.access_log.format = LogFormat::Off;
    settings.access_log.requests = vec![log(nodes.clone())];
    let http = Arc::get_mut(&mut config.http).unwrap();
    let table = http.tables.get_mut("own").unwrap();
    Arc::get_mut(table).unwrap().logs = Some(Arc::new(vec![log(own.clone())]));
    let flows = Arc::new(FlowTable::new(1));
    let offload = Arc::new(Offload::default());
    let access_log = AccessLogWriter::open(&settings, Arc::default()).unwrap();
    let telemetry = Telemetry::new(&flows, &offload, Arc::new(access_log));
    let node = Node::new(config, None, None, flows, offload, telemetry);
    node.telemetry.keep(&node.snapshot().config.http);
    for table in ["own", "plain", "own"] {
        ask(&node, table).await;
    }
    node.telemetry.access_log.close();
    let read = |path| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        (read(own), read(nodes)),
        ("b 200\nb 200\n".to_owned(), "b 204\n".to_owned())
    );
}
