use std::net::TcpListener;

use underpass_config::{ApplicationTunnel, Listener, ListenerProtocol, MeshChange, Workload, WorkloadUid};

use super::*;
use crate::flow_table::FlowTable;
use crate::offload::Offload;
use crate::telemetry::{AccessLogWriter, Telemetry};

/// A server on loopback that is a workload guarded by `policy`, and a node that knows it.
struct World {
    server: TcpListener,
    node: Arc<Node>,
}

impl World {
    fn new() -> Self {
        let server = TcpListener::bind("127.0.0.2:0").unwrap();
        let config = Config::from_yaml(&yaml("ALLOW", "{}")).unwrap();
        let flows = Arc::new(FlowTable::new(1));
        let offload = Arc::new(Offload::default());
        let telemetry = Telemetry::new(&flows, &offload, Arc::new(AccessLogWriter::off()));
        Self {
            server,
            node: Node::new(config, None, None, flows, offload, telemetry),
        }
    }

    fn publish(&self, yaml: &str) -> usize {
        let (config, touched) = self.node.snapshot().config.updated(yaml).unwrap();
        self.node.publish(|_| (config, touched))
    }

    async fn attempt(&self, snapshot: &Snapshot) -> Attempt {
        let config = &snapshot.config;
        let source = Source::by_address(&config.mesh, &config.node, "127.0.0.1:4000".parse().unwrap());
        let address = self.server.local_addr().unwrap();
        let target = destination::choose(config, &Resolved::Address(address), &source, &[]).unwrap();
        let entrance = Entrance::Plain(Arc::new(Listener {
            name: "test".into(),
            address,
            protocol: ListenerProtocol::Socks5,
        }));
        let request = Request {
            node: &self.node,
            core: 0,
            entrance: &entrance,
            source: &source,
            started: SystemTime::now(),
            named_by: NamedBy::Us,
        };
        request.attempt(snapshot, source.clone(), target, true).await
    }

    fn was_contacted(&self) -> bool {
        self.server.set_nonblocking(true).unwrap();
        self.server.accept().is_ok()
    }
}

/// `rule` is a match of the one policy, whose action is `action`: `{}` matches in a DENY policy only.
fn yaml(action: &str, rule: &str) -> String {
    let rules = if rule == "{}" && action == "ALLOW" {
        "[]".to_owned()
    } else {
        format!("[{{matches: [{rule}]}}]")
    };
    format!(
        "workloads:\n- {{name: server, namespace: shop, addresses: [127.0.0.2], authorization_policies: [shop/p]}}\n\
         authorization_policies:\n- {{name: p, namespace: shop, scope: WORKLOAD_SELECTOR, action: {action}, \
         groups: [{{rules: {rules}}}]}}\n"
    )
}

#[tokio::test]
async fn a_connection_decided_on_an_older_snapshot_is_not_made() {
    let world = World::new();
    let old = world.node.snapshot();
    assert_eq!(
        world.publish(&yaml("DENY", "{}")),
        0,
        "there is no flow yet that the change could find"
    );
    assert!(matches!(world.attempt(&old).await, Attempt::Stale));
    assert!(!world.was_contacted());
    assert!(matches!(
        world.attempt(&world.node.snapshot()).await,
        Attempt::Refused(Refused {
            ending: Ending::PolicyDenied,
            ..
        })
    ));
    assert!(world.node.flows.flows().is_empty());
}

#[tokio::test]
async fn a_connection_made_before_the_change_is_found_by_it() {
    let world = World::new();
    let Attempt::Connected(connected) = world.attempt(&world.node.snapshot()).await else {
        panic!("allowed")
    };
    assert!(world.was_contacted());
    assert_eq!(world.publish(&yaml("DENY", "{}")), 1);
    assert_eq!(connected.guard.flow().requested_end(), Some(Ending::PolicyRevoked));
}

#[tokio::test]
async fn nothing_begins_after_the_drain_has_run_out_of_time() {
    let world = World::new();
    world.node.close();
    assert!(matches!(
        world.attempt(&world.node.snapshot()).await,
        Attempt::Refused(Refused {
            ending: Ending::Drained,
            ..
        })
    ));
    assert!(!world.was_contacted());
}

/// An application that believes a PROXY protocol header would believe one that the client has written.
#[tokio::test]
async fn only_hbone_leads_to_an_application_that_is_told_who_its_client_is() {
    let world = World::new();
    let port = world.server.local_addr().unwrap().port();
    let guard = |port, proxy_protocol| {
        world.node.publish(|in_force| {
            let (mut mesh, node) = (in_force.mesh.clone(), in_force.node.clone());
            let server = WorkloadUid::new("Kubernetes//Pod/shop/server");
            let mut workload = Workload::clone(mesh.workload(&server).unwrap());
            workload.application_tunnel = Some(ApplicationTunnel { port, proxy_protocol });
            let touched = mesh.apply([MeshChange::Workload(workload)]);
            (
                Config {
                    node,
                    mesh,
                    http: Default::default(),
                },
                touched,
            )
        });
    };
    for believed in [port, 0] {
        guard(believed, true);
        assert!(matches!(
            world.attempt(&world.node.snapshot()).await,
            Attempt::Refused(Refused {
                ending: Ending::PolicyDenied,
                ..
            })
        ));
        assert!(!world.was_contacted());
    }
    for (port, proxy_protocol) in [(port, false), (port ^ 1, true)] {
        guard(port, proxy_protocol);
        assert!(matches!(
            world.attempt(&world.node.snapshot()).await,
            Attempt::Connected(_)
        ));
    }
}
