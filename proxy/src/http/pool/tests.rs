use underpass_config::{Config, MeshChange, Service};

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

const MESH: &str = "workloads:\n\
    - {name: web, namespace: shop, service_account: web, addresses: [10.0.0.2], tunnel_protocol: hbone}\n\
    - {name: a, namespace: shop, service_account: way-a, addresses: [10.0.0.3], tunnel_protocol: hbone}\n\
    - {name: b, namespace: shop, service_account: way-b, addresses: [10.0.0.4], tunnel_protocol: hbone}\n\
    services:\n\
    - {name: web, namespace: shop, hostname: web.test, vips: [10.96.0.1], ports: [{port: 80}], endpoints: [shop/web]}\n\
    - {name: way, namespace: shop, vips: [10.96.0.2], ports: [{port: 15008}], endpoints: [shop/a, shop/b]}\n";

/// Who is expected at the other end of the tunnel to an endpoint of a cluster with these fields; nothing as long as nobody knows.
async fn expected(fields: &str) -> Result<Vec<String>, NotConnected> {
    let http = "node: {identities: {roots: /r, certificates: [{identity: 'spiffe://cluster.local/ns/shop/sa/own', chain: /c, key: /k}]}}\n\
         http: {client: 'spiffe://cluster.local/ns/shop/sa/own', clusters: [{name: a, connect_timeout: 1s, FIELDS}]}\n";
    let node = node(&(http.replace("FIELDS", fields) + MESH));
    // As istiod tells it of services whose endpoints may show other identities.
    node.publish(|config| {
        let mut config = config.clone();
        let mut web = Service::clone(config.mesh.service_named("web.test").unwrap().service());
        web.subject_alt_names = ["spiffe://cluster.local/ns/shop/sa/also".parse().unwrap()].into();
        let touched = config.mesh.apply([MeshChange::Service(web)]);
        (config, touched)
    });
    let snapshot = node.snapshot();
    let cluster = snapshot.config.http.cluster("a").unwrap();
    let tunnel = way::tunnel(&node, cluster, &cluster.endpoints()[0].settings).await?;
    let tunnel = tunnel.map(|tunnel| {
        tunnel
            .expected
            .iter()
            .map(|one| one.service_account.to_string())
            .collect()
    });
    Ok(tunnel.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn the_mesh_says_who_is_expected_at_a_tunnels_end() {
    let web = "service: {name: web, namespace: shop, hostname: web.test}";
    let of_another = "service: {name: web, namespace: other, hostname: web.test}";
    let at = |more: &str| format!("endpoints: [{{address: '10.0.0.2:80', reach: hbone{more}}}]");
    for (fields, who) in [
        (at(""), &["web"][..]),
        (format!("{web}, {}", at("")), &["web", "also"]),
        (format!("{of_another}, {}", at("")), &["web"]),
        (format!("{web}, {}", at(", via: '10.0.0.3:15008'")), &["way-a"]),
        (at(", via: '10.96.0.2:15008'"), &["way-a", "way-b"]),
        ("endpoints: ['10.0.0.2:80']".to_owned(), &[]),
    ] {
        assert_eq!(expected(&fields).await.unwrap(), who, "{fields}");
    }
    // Neither a service's address on another port, nor one that nobody has.
    for via in ["10.96.0.2:15009", "10.96.0.9:15008", "10.0.0.9:15008"] {
        let why = expected(&at(&format!(", via: '{via}'"))).await.unwrap_err();
        assert!(matches!(why, NotConnected::Untrusted(_)), "{via}: {why:?}");
    }
}
