//! Services of the mesh: what a client gets of one depends on the client's node.

use std::net::SocketAddr;

use underpass_tests::istiod::Service;
use underpass_tests::load::{Tally, ask, under_load};
use underpass_tests::{Server, wait};

use super::{Nodes, file_of, is_answered, web_servers};
use crate::place::{PORT, ip};
use crate::services::{answerers, service_entry, vip, wait_for_answerers, web};

const STATIC: &str = "10.96.0.50";
const NAMED: &str = "10.96.0.51";

fn at(address: &str) -> SocketAddr {
    (ip(address), 80).into()
}

#[test]
fn each_node_prefers_its_own_endpoints_where_it_is_told_to() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    let [on_a, on_b] = &servers;
    let both = [on_a, on_b];
    for (name, service, near) in [
        ("anywhere", web(), false),
        ("same node", web().spec("trafficDistribution: PreferSameNode"), true),
        ("anywhere again", web(), false),
        ("same zone", web().spec("trafficDistribution: PreferSameZone"), true),
        ("local", web().spec("internalTrafficPolicy: Local"), true),
    ] {
        eprintln!("{name}");
        nodes.istiod.apply("web", service);
        for (client, own) in nodes.clients().into_iter().zip(both) {
            let expected = if near { vec![own] } else { both.to_vec() };
            wait_for_answerers(client, vip(), &expected);
        }
    }
    // With nobody near, `Local` goes nowhere, and a preference further.
    let gone = nodes.a.web_object().labels("app: gone");
    nodes.istiod.apply(&file_of(&nodes.a.web), gone);
    wait::eventually(wait::SOON, "nobody is local", || !is_answered(&nodes.a.client, vip()));
    wait_for_answerers(&nodes.b.client, vip(), &[on_b]);
    nodes
        .istiod
        .apply("web", web().spec("trafficDistribution: PreferSameNode"));
    for client in nodes.clients() {
        wait_for_answerers(client, vip(), &[on_b]);
    }
}

#[test]
fn a_pod_that_is_not_ready_gets_no_new_connections_of_either_node_and_keeps_its_open_ones() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    let [on_a, on_b] = &servers;
    nodes.istiod.apply("web", web());
    for client in nodes.clients() {
        wait_for_answerers(client, vip(), &[on_a, on_b]);
    }
    let mut open = nodes
        .clients()
        .map(|client| ask(client, on_b.address()).expect("ready"));
    nodes
        .istiod
        .apply(&file_of(&nodes.b.web), nodes.b.web_object().unready());
    for client in nodes.clients() {
        wait_for_answerers(client, vip(), &[on_a]);
    }
    for stream in &mut open {
        Server::echo(stream, b"still here").expect("an open connection goes on");
    }
    nodes.istiod.apply("web", web().spec("publishNotReadyAddresses: true"));
    for client in nodes.clients() {
        wait_for_answerers(client, vip(), &[on_a, on_b]);
    }
}

#[test]
fn the_pods_of_a_headless_service_are_reached_by_their_own_addresses() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    let headless = Service::headless("shop/headless")
        .selecting("app: web")
        .port(PORT, PORT);
    nodes.istiod.apply("headless", headless);
    for side in nodes.sides() {
        wait::eventually(wait::SOON, "the mesh has the service", || {
            side.proxy.status()["mesh"]["services"].as_u64() == Some(1)
        });
    }
    for (client, server) in nodes.clients().iter().flat_map(|c| servers.iter().map(move |s| (c, s))) {
        assert_eq!(answerers(client, server.address()), [server.address()].into());
    }
}

/// Both kinds of entry lead to a host that is not of the mesh, and that is reached by plain TCP.
#[test]
fn service_entries_lead_out_of_the_mesh_from_both_nodes() {
    let Some(nodes) = Nodes::start() else { return };
    let outside = Server::start(&nodes.b.stranger, PORT);
    let address = nodes.b.stranger.ip();
    for side in nodes.sides() {
        side.node.name_host("elsewhere.example", address);
    }
    let ports = format!("ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: {PORT}}}]");
    let entry = |name: &str, vip: &str, resolution: &str, endpoint: &str| {
        let spec = format!(
            "hosts: [{name}.example.com], addresses: [{vip}], location: MESH_EXTERNAL, resolution: {resolution}, \
             {ports}, endpoints: [{{address: {endpoint}}}]"
        );
        service_entry(name, &spec)
    };
    for (name, vip, resolution, endpoint) in [
        ("static", STATIC, "STATIC", address.to_string()),
        ("named", NAMED, "DNS", "elsewhere.example".to_owned()),
    ] {
        nodes.istiod.apply(name, entry(name, vip, resolution, &endpoint));
        for client in nodes.clients() {
            wait_for_answerers(client, at(vip), &[&outside]);
        }
        nodes.istiod.delete(name);
        for client in nodes.clients() {
            wait::eventually(wait::SOON, "the entry is gone", || !is_answered(client, at(vip)));
        }
    }
    assert_eq!(outside.resets(), 0);
}

/// Added, scaled to zero, up again, deleted, while clients of both nodes use what stays.
#[test]
fn services_change_under_the_load_of_two_nodes_and_no_connection_that_could_be_made_is_lost() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    nodes.istiod.apply("web", web());
    for client in nodes.clients() {
        wait_for_answerers(client, vip(), &servers.each_ref());
    }
    let added = at("10.96.0.11");
    let another = Service::new("shop/another", added.ip()).port(80, PORT);
    let [a, b] = nodes.clients();
    let lanes = [
        (a, vip()),
        (b, vip()),
        (a, servers[1].address()),
        (b, servers[0].address()),
    ];
    let go_on = |tallies: &[Tally]| {
        for tally in tallies {
            tally.wait_for(20);
            tally.assert_none_lost();
        }
    };
    under_load(&lanes, |tallies| {
        for _ in 0..2 {
            for labels in ["app: web", "app: none", "app: web"] {
                nodes.istiod.apply("another", another.clone().selecting(labels));
                for other in nodes.others() {
                    wait::eventually(wait::SOON, labels, || {
                        is_answered(other, added) == (labels == "app: web")
                    });
                }
                go_on(tallies);
            }
            let (file, object) = (file_of(&nodes.b.web), nodes.b.web_object());
            nodes.istiod.apply(&file, object.clone().labels("app: gone"));
            for other in nodes.others() {
                wait_for_answerers(other, added, &[&servers[0]]);
            }
            go_on(tallies);
            nodes.istiod.apply(&file, object);
            for other in nodes.others() {
                wait_for_answerers(other, added, &servers.each_ref());
            }
            nodes.istiod.delete("another");
            for other in nodes.others() {
                wait::eventually(wait::SOON, "deleted", || !is_answered(other, added));
            }
            go_on(tallies);
        }
    });
}
