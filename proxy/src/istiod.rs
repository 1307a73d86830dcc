//! The mesh as istiod tells of it, put in force as it comes.
//!
//! The one idea: **losing istiod changes nothing.** What is in force is in the node's snapshot and nowhere else; the
//! client (`underpass-xds-client`) hands on changes, each is applied to the snapshot that it finds, and costs what it
//! changes. Without istiod there are no changes.
//!
//! The opposite holds at the start: *without a mesh nobody is served.* An empty mesh has no policies, so it would let
//! through what they are there to stop. Until the first update, which has all resources of all types, listeners leave
//! connections in their queues, the agent is not asked for pods (so that a proxy that served them before serves on),
//! and `/ready` says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Handle;
use underpass_certs::{Istiod, IstiodSecurity};
use underpass_config::{Config, IstiodSettings, NodeSettings};
use underpass_xds_client::{
    Client, ClientSettings, MeshFacts, Node as Describing, NodeRole, StatusReader, Update, Updates, client,
};

use crate::node::Node;

/// The Istio release whose istiod this is tried with. istiod adapts what it sends to it.
const ISTIO_VERSION: &str = "1.31.0";

/// What comes from istiod, to be [put in force](Feed::serve).
#[derive(Debug)]
pub struct Feed {
    client: Client,
    updates: Updates,
}

impl Feed {
    /// What istiod has for this node, if the settings name one, and how the connection to it stands.
    pub fn new(node: &NodeSettings) -> Option<(Self, StatusReader)> {
        let settings = node.istiod.as_ref()?;
        let client_settings = ClientSettings {
            mesh: MeshFacts {
                trust_domain: node.identities.trust_domain.clone(),
                root_namespace: settings.root_namespace.clone(),
            },
            policy_grace: settings.policy_grace,
            ..ClientSettings::default()
        };
        let (client, updates, status) = client(reached_by(settings), describe(settings, node), client_settings);
        Some((Self { client, updates }, status))
    }

    /// Puts every update in force, for as long as the node lives.
    pub async fn serve(self, node: Arc<Node>) {
        let Self { client, mut updates } = self;
        tokio::spawn(client.run());
        while let Some(update) = updates.next().await {
            // What could not be put in force opens no listener: an empty mesh has no policies.
            if put_in_force(&node, update).await {
                node.mesh_has_come();
            }
        }
    }
}

/// On a thread where it holds nothing up: the first update may have 100 000 workloads. Whether it is in force now.
async fn put_in_force(node: &Arc<Node>, update: Update) -> bool {
    let (node, control) = (node.clone(), Handle::current());
    let publishing = tokio::task::spawn_blocking(move || {
        let _entered = control.enter();
        let changes = update.changes.len();
        let denied = node.publish(|in_force| {
            let mut mesh = in_force.mesh.clone();
            let touched = mesh.apply(update.changes);
            let node = in_force.node.clone();
            let http = in_force.http.clone();
            (Config { node, mesh, http }, touched)
        });
        tracing::debug!(changes, denied, "an update of istiod is in force");
    });
    let is_in_force = publishing.await.is_ok();
    if !is_in_force {
        tracing::error!(
            "putting an update of istiod in force panicked: restart this proxy to have the whole mesh again"
        );
    }
    is_in_force
}

/// How istiod is reached, for xDS and for its CA.
pub(crate) fn reached_by(settings: &IstiodSettings) -> Istiod {
    let security = IstiodSecurity::Tls {
        roots: settings.roots.clone(),
        server_name: settings.server_name.as_deref().map(str::to_owned),
    };
    Istiod {
        connect_timeout: settings.connect_timeout,
        ..Istiod::new(settings.address.to_string(), security, Some(settings.token.clone()))
    }
}

fn describe(settings: &IstiodSettings, node: &NodeSettings) -> Describing {
    Describing {
        role: NodeRole::Node,
        pod: settings.pod.to_string(),
        namespace: settings.namespace.to_string(),
        addresses: vec![settings.pod_ip],
        node: node.name.to_string(),
        cluster_id: node.cluster_id.to_string(),
        network: node.network.to_string(),
        service_account: settings.service_account.as_deref().unwrap_or_default().to_owned(),
        istio_version: ISTIO_VERSION.to_owned(),
        labels: BTreeMap::new(),
    }
}
