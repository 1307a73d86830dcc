//! Policy by captured identity: who a client is follows from the pod in which it runs, whatever it says.

use std::io::{self, Read};
use std::net::TcpStream;

use underpass_tests::{Host, Server, is_reset, wait};

use crate::place::{AWAY_VIP, Hosts, ONLY_CLIENT, PORT, Place, VIP, VIP6, address, ask, quiet};

const ONLY_NAMESPACE: &str =
    "scope: WORKLOAD_SELECTOR, action: ALLOW, groups: [{rules: [{matches: [{namespaces: [shop]}]}]}]";
const DENY_CLIENT: &str =
    "scope: GLOBAL, action: DENY, groups: [{rules: [{matches: [{principals: ['*/sa/client']}]}]}]";

fn guarded(hosts: &Hosts, policy: &str) -> underpass_tests::Config {
    hosts
        .config("shop/rule, away/rule")
        .policy("shop/rule", policy)
        .policy("away/rule", policy)
}

fn listen_everywhere(place: &Place) -> [Server; 4] {
    [&*place.server, &place.remote]
        .map(|host| [host.at(PORT), host.at6(PORT)].map(|at| Server::start_at(host, at)))
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| unreachable!("two hosts, two families"))
}

fn accepted(servers: &[Server]) -> usize {
    servers.iter().map(Server::accepted).sum()
}

#[test]
fn only_the_allowed_pod_reaches_the_servers() {
    let Some(place) = Place::start(|hosts| guarded(hosts, ONLY_CLIENT)) else {
        return;
    };
    let servers = listen_everywhere(&place);
    let places: Vec<_> = servers
        .iter()
        .map(Server::address)
        .chain([VIP, VIP6, AWAY_VIP].map(address))
        .collect();
    for policy in [ONLY_CLIENT, ONLY_NAMESPACE] {
        place.proxy.apply(&guarded(&place, policy));
        let before = accepted(&servers);
        for to in &places {
            let stream = ask(&place.client, *to).unwrap_or_else(|e| panic!("{to}: {e}"));
            let source = stream.local_addr().expect("open");
            drop(stream);
            let line = place.proxy.access_line(source);
            line.assert_reason("completed", "-");
            assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/client");
        }
        assert_eq!(accepted(&servers), before + places.len());
        for to in &places {
            let earlier = place.proxy.access_lines().len();
            place.assert_refused(&place.other, *to);
            let lines = wait::some(wait::SOON, "the refusal is logged", || {
                Some(place.proxy.access_lines()).filter(|lines| lines.len() > earlier)
            });
            let line = lines.last().expect("more than before");
            line.assert_reason("policy_denied", "DENY");
            assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/else/sa/other");
        }
        assert_eq!(
            accepted(&servers),
            before + places.len(),
            "who is refused is not seen by the server"
        );
    }
}

#[test]
fn a_change_of_policy_resets_open_connections_at_both_ends() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let servers = listen_everywhere(&place);
    let open = |host: &Host| -> Vec<TcpStream> {
        servers
            .iter()
            .map(|server| ask(host, server.address()).expect("allowed so far"))
            .collect()
    };
    let (denied, mut spared) = (open(&place.client), open(&place.other));
    place.proxy.apply(&place.config("").policy("mesh/rule", DENY_CLIENT));
    for mut stream in denied {
        let source = stream.local_addr().expect("open");
        stream.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
        let end = stream.read(&mut [0]).expect_err("a reset");
        assert!(is_reset(&end), "{end}");
        place.proxy.access_line(source).assert_reason("policy_revoked", "DENY");
    }
    wait::eventually(wait::SOON, "the servers have seen it too", || {
        servers.iter().map(Server::resets).sum::<usize>() == servers.len()
    });
    for stream in &mut spared {
        Server::echo(stream, b"still here").expect("the other pod's connections go on");
    }
    place.assert_refused(&place.client, servers[0].address());
    place.proxy.apply(&place.config(""));
    ask(&place.client, servers[0].address()).expect("allowed again");
}

#[test]
fn an_address_that_is_another_pods_is_no_identity() {
    let Some(place) = Place::start(|hosts| guarded(hosts, ONLY_CLIENT)) else {
        return;
    };
    let servers = listen_everywhere(&place);
    // The node delivers to whoever is told to have the address: the adversaries answer for it, the client is gone from the network.
    for (number, thief) in [(2, &*place.other), (3, &*place.stranger)] {
        let (own, own6) = (place.client.ip(), place.client.ip6());
        thief.ip_command(&format!("addr add {own}/32 dev eth0"));
        thief.ip_command(&format!("addr add {own6}/128 dev eth0 nodad"));
        let device = place.node.device_of(thief);
        for (family, address) in [("-4", own), ("-6", own6)] {
            place
                .node
                .host()
                .ip_command(&format!("{family} route replace {address} dev {device}"));
        }
        for server in &servers {
            let to = server.address();
            let from = if to.is_ipv4() { own } else { own6 };
            let outcome = ask_from(thief, from, to);
            // The other node's server is not captured: what a pod without capture does there is nobody's business here.
            if number == 3 && !place.server.addresses().contains(&to.ip()) {
                continue;
            }
            assert!(outcome.is_err(), "{from} to {to}: {outcome:?}");
        }
    }
    quiet(&servers[0]);
    assert_eq!(servers[0].accepted() + servers[1].accepted(), 0);
    let lines = place.proxy.access_lines();
    assert!(
        lines
            .iter()
            .all(|line| line.field("src.identity") != "spiffe://cluster.local/ns/shop/sa/client")
    );
}

/// [`ask`] from an address of the program's choice.
fn ask_from(host: &Host, from: std::net::IpAddr, to: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = host.socket(to);
    socket.bind(&std::net::SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), wait::soon())?;
    let mut stream = TcpStream::from(socket);
    crate::place::round_trip(&mut stream)?;
    Ok(stream)
}
