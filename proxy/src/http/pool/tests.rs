use underpass_config::{AccessLog, Config, LogFormat};

use super::*;
use crate::flow_table::FlowTable;
use crate::offload::Offload;
use crate::telemetry::{AccessLogWriter, Telemetry};

fn node(yaml: &str) -> Arc<Node> {
    let config = Config::from_yaml(yaml).unwrap();
    let flows = Arc::new(FlowTable::new(1));
    let off = AccessLog {
        format: LogFormat::Off,
        ..AccessLog::default()
    };
    let offload = Arc::new(Offload::default());
    let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::open(&off).unwrap()));
    Node::new(config, None, None, flows, offload, telemetry)
}

/// An endpoint that nobody can connect to, asked for under a thousand names, leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn what_was_never_connected_to_is_forgotten() {
    let node =
        node("http: {clusters: [{name: a, protocol: http2, endpoints: ['127.0.0.1:1'], connections: {idle: 5000}}]}");
    let snapshot = node.snapshot();
    let cluster = snapshot.config.http.cluster("a").unwrap();
    let endpoint = &cluster.endpoints()[0];
    for name in 0..1000 {
        let mut wanted = Wanted {
            node: &node,
            core: 0,
            cluster,
            endpoint,
            key: Key {
                cluster: "a".into(),
                address: endpoint.settings.address,
                transport: cluster.settings.transport.clone(),
                edition: 0,
                server_name: Some(name.to_string().into()),
                client: None,
            },
            speaks: Speaks::Http2,
        };
        assert!(wanted.connection(Age::Any).await.is_err());
    }
    assert_eq!(node.http.pool(0).http2.len(), 1000);
    tokio::time::sleep(SWEEP * 3).await;
    assert!(node.http.pool(0).http2.is_empty());
}
