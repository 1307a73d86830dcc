//! The mesh as istiod tells of it, and what a waypoint serves, put in force as it comes.
//!
//! The one idea: **losing istiod changes nothing.** What is in force is in the node's snapshot and nowhere else; the
//! client (`underpass-xds-client`) hands on changes, each is applied to the snapshot that it finds, and costs what it
//! changes. Without istiod there are no changes.
//!
//! The opposite holds at the start: *without a mesh nobody is served.* An empty mesh has no policies, so it would let
//! through what they are there to stop. Until the first update, which has all resources of all types, listeners leave
//! connections in their queues, the agent is not asked for pods (so that a proxy that served them before serves on),
//! and `/ready` says why.
//!
//! A node that is a waypoint besides is two nodes to istiod: each has a stream of its own, and a [`Feed`] here.

use std::sync::Arc;

use underpass_certs::{Istiod, IstiodSecurity};
use underpass_config::{IstiodSettings, NodeSettings, Role, WaypointSettings};
use underpass_xds_client::{
    Client, ClientSettings, Dump, MeshFacts, Node as Describing, NodeRole, Recorder, Updates, Wanted, client,
};

mod applying;
mod serving;
mod standing;

use applying::Applying;
pub use standing::{Standing, Told};

use crate::node::Node;

/// The Istio release whose istiod this is tried with. istiod adapts what it sends to it.
const ISTIO_VERSION: &str = "1.31.0";

/// The label of a waypoint's pod that names its `Gateway`.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// What comes from istiod, to be [put in force](Feed::serve).
#[derive(Debug)]
pub struct Feed {
    told: Told,
    client: Client,
    updates: Updates,
    replayed: Option<Replay>,
}

/// What was sent once, and the file that it is from.
#[derive(Clone, Debug)]
pub struct Replay {
    /// What was sent.
    pub dump: Dump,
    /// The file, for whoever asks why there is no istiod.
    pub file: String,
}

impl Feed {
    /// What istiod has for this node, if the settings name one, and how each connection to it stands; or else, if given, what it had once. What comes is written down by
    /// the recorder, if there is one.
    pub fn all(
        node: &NodeSettings,
        replayed: Option<&Replay>,
        recorder: Option<&Recorder>,
    ) -> (Vec<Self>, Option<Standing>) {
        let Some(settings) = &node.istiod else {
            return Default::default();
        };
        let feed = |told: Told, role: NodeRole, wanted: Wanted| {
            let client_settings = ClientSettings {
                wanted,
                recorder: recorder.cloned(),
                ..client_settings(settings, node)
            };
            let (client, updates, status) =
                client(reached_by(settings), describe(settings, node, role), client_settings);
            let feed = Self {
                told,
                client,
                updates,
                replayed: replayed.cloned(),
            };
            (feed, status)
        };
        let (mesh, beside) = match (&settings.waypoint, node.role) {
            (None, _) => (feed(Told::Mesh, NodeRole::Node, Wanted::Mesh), None),
            // A waypoint is told of the mesh by the same stream.
            (Some(waypoint), Role::Waypoint) => {
                (feed(Told::Mesh, NodeRole::Waypoint, Wanted::Both(waypoint.grace)), None)
            }
            (Some(waypoint), _) => (
                feed(Told::Mesh, NodeRole::Node, Wanted::Mesh),
                Some(feed(
                    Told::Waypoint,
                    NodeRole::Waypoint,
                    Wanted::Waypoint(waypoint.grace),
                )),
            ),
        };
        let (mut feeds, mut standing) = (vec![mesh.0], Standing::of_mesh(mesh.1));
        if let Some((feed, status)) = beside {
            feeds.push(feed);
            standing = standing.and_of_waypoint(status);
        }
        (feeds, Some(standing))
    }

    /// Waits until all that was asked for has come, and forgets it.
    pub async fn until_told(self) {
        let Self {
            client,
            mut updates,
            replayed,
            ..
        } = self;
        let telling = run(client, replayed);
        tokio::select! {
            () = telling => {}
            _ = updates.next() => {}
        }
    }

    /// Puts every update in force, for as long as the node lives.
    pub async fn serve(self, node: Arc<Node>) {
        let Self {
            told,
            client,
            mut updates,
            replayed,
        } = self;
        tokio::spawn(run(client, replayed));
        let mut applying = Applying::new(node, told);
        while let Some(update) = updates.next().await {
            applying.put_in_force(update).await;
        }
    }
}

async fn run(client: Client, replayed: Option<Replay>) {
    match replayed {
        Some(Replay { dump, file }) => client.replay(dump, &file).await,
        None => client.run().await,
    }
}

fn client_settings(settings: &IstiodSettings, node: &NodeSettings) -> ClientSettings {
    ClientSettings {
        mesh: MeshFacts {
            trust_domain: node.identities.trust_domain.clone(),
            root_namespace: settings.root_namespace.clone(),
        },
        policy_grace: settings.policy_grace,
        ..ClientSettings::default()
    }
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

fn describe(settings: &IstiodSettings, node: &NodeSettings, role: NodeRole) -> Describing {
    let label = |waypoint: &WaypointSettings| (GATEWAY.to_owned(), waypoint.gateway.to_string());
    let labels = settings.waypoint.as_ref().map(label);
    Describing {
        role,
        pod: settings.pod.to_string(),
        namespace: settings.namespace.to_string(),
        addresses: vec![settings.pod_ip],
        node: node.name.to_string(),
        cluster_id: node.cluster_id.to_string(),
        network: node.network.to_string(),
        service_account: settings.service_account.as_deref().unwrap_or_default().to_owned(),
        istio_version: ISTIO_VERSION.to_owned(),
        labels: labels.into_iter().collect(),
    }
}
