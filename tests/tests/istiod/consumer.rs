//! An xDS client whose updates become a mesh.

use std::time::Duration;

use tokio::runtime::Runtime;
use underpass_certs::{Backoff, Istiod, IstiodSecurity};
use underpass_config::{Mesh, WorkloadUid};
use underpass_tests::wait;
use underpass_xds_client::{ClientSettings, Node, NodeRole, Status, StatusReader, Updates, client};

/// A client and its mesh.
pub(crate) struct Consumer {
    pub(crate) mesh: Mesh,
    /// How many changes each update had.
    pub(crate) updates: Vec<usize>,
    status: StatusReader,
    incoming: Updates,
    // Last: it ends what runs in it.
    runtime: Runtime,
}

/// Who the client says it is.
fn node_a() -> Node {
    Node {
        role: NodeRole::Node,
        pod: "ztunnel-a".into(),
        namespace: "istio-system".into(),
        addresses: vec![crate::cluster::address(1, 250)],
        node: "node-a".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        service_account: "ztunnel".into(),
        istio_version: "1.31.0".into(),
        labels: Default::default(),
    }
}

impl Consumer {
    /// A client of an istiod that asks nobody who he is.
    pub(crate) fn plain(istiod: &underpass_tests::istiod::Istiod) -> Self {
        Self::plain_as(istiod, |_| {})
    }

    /// As [`Consumer::plain`], as another node.
    pub(crate) fn plain_as(istiod: &underpass_tests::istiod::Istiod, adjust: impl FnOnce(&mut Node)) -> Self {
        let istiod = Istiod::new(istiod.plain().to_string(), IstiodSecurity::Plaintext, None);
        Self::start(istiod, adjust)
    }

    /// A client of this istiod.
    pub(crate) fn of(istiod: Istiod) -> Self {
        Self::start(istiod, |_| {})
    }

    fn start(istiod: Istiod, adjust: impl FnOnce(&mut Node)) -> Self {
        let short = Duration::from_millis(50);
        let settings = ClientSettings {
            backoff: Backoff::new(short, short),
            ..Default::default()
        };
        let mut node = node_a();
        adjust(&mut node);
        let runtime = Runtime::new().unwrap();
        let (client, incoming, status) = client(istiod, node, settings);
        runtime.spawn(client.run());
        Self {
            mesh: Mesh::default(),
            updates: Vec::new(),
            status,
            incoming,
            runtime,
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status.read()
    }

    /// Applies updates until the mesh is as it should be.
    #[track_caller]
    pub(crate) fn apply_until(&mut self, what: &str, is_so: impl Fn(&Mesh) -> bool) {
        while !is_so(&self.mesh) {
            let next = async { tokio::time::timeout(wait::patient(wait::SOON), self.incoming.next()).await };
            let Ok(update) = self.runtime.block_on(next) else {
                panic!("not so within {:?}: {what}; {:#?}", wait::SOON, self.status());
            };
            let update = update.expect("the client runs");
            self.updates.push(update.changes.len());
            self.mesh.apply(update.changes);
        }
    }

    /// Whether the mesh knows the pod `namespace/name`.
    pub(crate) fn knows(pod: &str) -> impl Fn(&Mesh) -> bool {
        let uid = WorkloadUid::new(format!("Kubernetes//Pod/{pod}"));
        move |mesh| mesh.workload(&uid).is_some()
    }
}
