use underpass_config::Config;

use super::*;
use crate::flow_table::FlowTable;
use crate::offload::Offload;
use crate::telemetry::{AccessLogWriter, Telemetry};

fn node(yaml: &str) -> Arc<Node> {
    let config = Config::from_yaml(yaml).unwrap();
    let flows = Arc::new(FlowTable::new(1));
    let offload = Arc::new(Offload::default());
    let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::off()));
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
                way: Way::Direct,
            },
            speaks: Speaks::Http2,
        };
        assert!(wanted.connection(Age::Any).await.is_err());
    }
    assert_eq!(node.http.pool(0).http2.len(), 1000);
    tokio::time::sleep(SWEEP * 3).await;
    assert!(node.http.pool(0).http2.is_empty());
}

/// A core that asks more often would else have all connections: with one allowed, another that waits would never have it.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_connection_comes_before_whoever_comes_then() {
    let node = node("http: {clusters: [{name: a, endpoints: ['127.0.0.1:1'], limits: {connections: 1}}]}");
    let cluster = node.snapshot().config.http.cluster("a").unwrap().clone();
    let held = slots::take(&node, &cluster).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = Vec::new();
    for number in 0..3 {
        let (node, cluster, tell) = (node.clone(), cluster.clone(), tell.clone());
        waiting.push(tokio::spawn(async move {
            let slot = slots::slot(&node, &cluster).await;
            tell.send(number).unwrap();
            // As long as a connection, which others see go.
            tokio::time::sleep(SWEEP).await;
            drop(slot);
            assert!(
                number == 2 || slots::take(&node, &cluster).is_none(),
                "{number} came again before the others"
            );
        }));
        // It stands in the line.
        tokio::task::yield_now().await;
    }
    // One that waits no more is nobody's hindrance.
    let given_up = tokio::time::timeout(SWEEP / 2, slots::slot(&node, &cluster)).await;
    assert!(given_up.is_err());
    drop(held);
    assert!(
        slots::take(&node, &cluster).is_none(),
        "a newcomer passed those who wait"
    );
    let latecomer = slots::slot(&node, &cluster);
    let (_last, order) = tokio::join!(latecomer, async {
        let mut order = Vec::new();
        for _ in 0..3 {
            order.push(told.recv().await.unwrap());
        }
        order
    });
    assert_eq!(order, [0, 1, 2]);
    for done in waiting {
        done.await.unwrap();
    }
}
