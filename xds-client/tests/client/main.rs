//! The client against an istiod in this process.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of an integration test for something else"
)]

mod connection;
mod peer;
mod serving;
mod subscription;

use std::time::Duration;

use underpass_certs::{Backoff, Istiod, IstiodSecurity};
use underpass_config::{Mesh, Touched};
use underpass_xds_client::{Client, ClientSettings, Node, NodeRole, ResourceType, StatusReader, Updates, client};

use peer::{Peer, ServerStream, response, soon};

fn node() -> Node {
    Node {
        role: NodeRole::Node,
        pod: "underpass-x".into(),
        namespace: "istio-system".into(),
        addresses: vec!["10.0.0.7".parse().unwrap()],
        node: "node-a".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        service_account: "ztunnel".into(),
        istio_version: "1.31.0".into(),
        labels: [("app".to_owned(), "underpass".to_owned())].into(),
    }
}

fn settings() -> ClientSettings {
    let short = Duration::from_millis(10);
    ClientSettings {
        backoff: Backoff::new(short, short),
        ..Default::default()
    }
}

/// A client and who consumes its updates into a mesh.
struct Consumer {
    updates: Updates,
    status: StatusReader,
    mesh: Mesh,
}

impl Consumer {
    fn of(peer: &Peer, settings: ClientSettings) -> Self {
        let istiod = Istiod::new(peer.address.to_string(), IstiodSecurity::Plaintext, None);
        Self::run(client(istiod, node(), settings))
    }

    fn run((client, updates, status): (Client, Updates, StatusReader)) -> Self {
        tokio::spawn(client.run());
        Self {
            updates,
            status,
            mesh: Mesh::default(),
        }
    }

    /// Applies the next update; returns how many changes it has, and what they touched.
    async fn apply_next(&mut self) -> (usize, Touched) {
        let update = soon("an update", self.updates.next()).await.unwrap();
        (update.changes.len(), self.mesh.apply(update.changes))
    }

    fn workloads(&self) -> Vec<String> {
        let mut names: Vec<String> = self.mesh.workloads().map(|one| one.uid.to_string()).collect();
        names.sort();
        names
    }
}

/// A stream on which the client has been told the beginning: these workloads, service `web`, and no policy.
async fn begin(peer: &mut Peer, consumer: &mut Consumer, workloads: &[&str]) -> ServerStream {
    let mut stream = peer.stream().await;
    stream.subscriptions().await;
    let workloads = workloads
        .iter()
        .map(|name| peer::workload_resource("1", peer::workload(name, |_| {})));
    let all = workloads.chain([peer::service_resource("1")]).collect();
    stream.acked(response(ResourceType::Address, all, &[])).await;
    stream
        .acked(response(ResourceType::Authorization, Vec::new(), &[]))
        .await;
    consumer.apply_next().await;
    stream
}
