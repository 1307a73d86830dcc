//! A waypoint and what is no HTTP: the bytes of a tunnel for a service go to an endpoint as they are.
//!
//! The near proxy puts what its clients send, once they have asked for it by CONNECT, into tunnels of its own to the waypoint.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use nix::sys::signal::Signal;
use underpass_tests::conversation::{ChildPeer, Ending, Plan, Script, Seen, judge, talk};
use underpass_tests::{
    AccessLine, Authority, Config, Host, Listen, Proxy, Refused, Server, Target, Way, World, is_reset, open, wait,
};

use crate::http::{get, id};
use crate::place::GATEWAY;

const WAYPOINT: &str = "shop/waypoint";
const HBONE: u16 = 15008;
/// The first service's port, at the waypoint's own address; the others follow. So do the near proxy's listeners for them.
const SERVICE: u16 = 9000;
const LISTEN: u16 = 8000;
/// Where endpoints listen.
const PORT: u16 = 8080;
/// Conversations at a time, each with a service and an endpoint of its own; they share the tunnels' connections.
const LANES: u16 = 4;
/// Conversations of a lane.
const EACH: u64 = 30;
/// Of a receive buffer (the kernel doubles it).
const NARROW: usize = 16 * 1024;

struct Mesh {
    near: Proxy,
    waypoint: Proxy,
    /// Where the near proxy, and clients, are.
    client: Host,
    host: Host,
    authority: Authority,
    _world: World,
}

impl Mesh {
    /// What `serves` makes of the waypoint's host has its services, from [`SERVICE`] on so many, and its clusters.
    fn start(world: World, services: u16, serves: impl Fn(&Host) -> String) -> Self {
        let authority = Authority::new(&world.directory().join("certificates"));
        let (client, host) = (world.host(), world.host());
        let waypoint = Proxy::start(&world, &host, &waypoint(&authority, &host, &serves(&host)));
        let (mut near, mut clusters, mut tables) = (Config::new(), Vec::new(), Vec::new());
        for number in 0..services {
            let name = NAMES[usize::from(number)];
            near = near.listener(name, client.at(LISTEN + number), Listen::Http(name));
            clusters.push(format!(
                "{{name: {name}, connect_timeout: 30s, endpoints: ['{}'], hbone: {{identity: '{}', peers: ['{}']}}}}",
                host.at(SERVICE + number),
                id(GATEWAY),
                id(WAYPOINT)
            ));
            tables.push(format!(
                "{{name: {name}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{connect: true}}, forward: {{cluster: {name}, connect: tcp, timeout: 0s}}}}, \
                 {{forward: {{cluster: {name}}}}}]}}]}}"
            ));
        }
        let near = near
            .node(format!("identities: {}", authority.identities(&[GATEWAY])))
            .http(format!(
                "clusters: [{}], routes: [{}]",
                clusters.join(", "),
                tables.join(", ")
            ));
        let near = Proxy::start(&world, &client, &near);
        Self {
            near,
            waypoint,
            client,
            host,
            authority,
            _world: world,
        }
    }

    /// Has the waypoint serve something else.
    fn serve(&self, served: &str) {
        self.waypoint.apply(&waypoint(&self.authority, &self.host, served));
    }

    fn listener(&self, number: u16) -> SocketAddr {
        self.client.at(LISTEN + number)
    }

    /// A connection to the service of that number.
    fn open(&self, number: u16) -> Result<TcpStream, Refused> {
        open(
            &self.client,
            Way::Connect(self.listener(number)),
            Target::Name("svc.test", 80),
        )
    }

    /// A connection to a [`Server`], which has greeted.
    fn greeted(&self, number: u16) -> (TcpStream, SocketAddr) {
        let mut stream = self.open(number).unwrap_or_else(|refused| panic!("{refused:?}"));
        let by = Server::greeting(&mut stream).expect("a greeting");
        (stream, by)
    }

    /// The waypoint's next line that fits.
    fn line(&self, what: &str, is_it: impl Fn(&AccessLine) -> bool) -> AccessLine {
        wait::some(wait::SOON, what, || {
            self.waypoint.access_lines().into_iter().find(&is_it)
        })
    }
}

/// Their names.
const NAMES: [&str; 4] = ["one", "two", "three", "four"];

fn waypoint(authority: &Authority, host: &Host, served: &str) -> Config {
    Config::new()
        .access_log_format("json")
        .node(format!("identities: {}", authority.identities(&[WAYPOINT])))
        .node("timeouts: {drain: 20s}")
        .listener("mesh", host.at(HBONE), Listen::Hbone(id(WAYPOINT)))
        .http(served)
}

/// One service, whose endpoints are those of the cluster `c`.
fn one(host: &Host, tcp: &str, endpoints: &[SocketAddr]) -> String {
    format!(
        "services: [{{address: '{}', tcp: {{cluster: c{tcp}}}}}], clusters: [{}]",
        host.at(SERVICE),
        cluster("c", "", endpoints)
    )
}

fn cluster(name: &str, more: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("'{endpoint}'")).collect();
    format!("{{name: {name}, endpoints: [{}]{more}}}", endpoints.join(", "))
}

/// Whether nothing but a reset comes.
fn is_broken(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(wait::soon())).expect("a socket");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).is_err_and(|error| is_reset(&error))
}

#[test]
fn every_byte_and_every_end_is_as_on_a_wire() {
    let world = World::loopback();
    let servers: Vec<Host> = (0..LANES).map(|_| world.host()).collect();
    let mesh = Mesh::start(world, LANES, |host| {
        let services = (0..LANES).map(|lane| {
            let name = NAMES[usize::from(lane)];
            format!("{{address: '{}', tcp: {{cluster: {name}}}}}", host.at(SERVICE + lane))
        });
        let clusters = (0..LANES).map(|lane| {
            let place = usize::from(lane);
            cluster(NAMES[place], "", &[servers[place].at(PORT)])
        });
        let (services, clusters): (Vec<_>, Vec<_>) = (services.collect(), clusters.collect());
        format!(
            "services: [{}], clusters: [{}]",
            services.join(", "),
            clusters.join(", ")
        )
    });
    let first = std::env::var("UNDERPASS_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("a number"));
    thread::scope(|scope| {
        for (number, server) in (0..LANES).zip(&servers) {
            let mesh = &mesh;
            scope.spawn(move || {
                let lane = Lane::new(mesh, number, server);
                (0..EACH).for_each(|turn| lane.hold(first + u64::from(number) * EACH + turn));
            });
        }
    });
    let metrics = mesh.waypoint.metrics();
    let labels = [("reporter", "waypoint"), ("connection_security_policy", "mutual_tls")];
    let opened = metrics.sum("istio_tcp_connections_opened_total", &labels);
    assert_eq!(opened, u64::from(LANES) * EACH, "each was counted, once");
    assert_eq!(metrics.sum("istio_tcp_connections_closed_total", &labels), opened);
}

struct Lane<'a> {
    mesh: &'a Mesh,
    number: u16,
    client: Host,
    listener: TcpListener,
    endpoint: SocketAddr,
}

impl<'a> Lane<'a> {
    fn new(mesh: &'a Mesh, number: u16, server: &Host) -> Self {
        let narrow = |host: &Host| match number % 2 {
            0 => host.clone(),
            _ => host.with_receive_buffer(NARROW),
        };
        let listener = narrow(server).listen(PORT);
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        Self {
            mesh,
            number,
            client: narrow(&mesh.client),
            listener,
            endpoint: server.at(PORT),
        }
    }

    fn hold(&self, seed: u64) {
        let script = Script::new(seed);
        let seen = self.lines().len();
        let to = Way::Connect(self.mesh.listener(self.number));
        let client =
            open(&self.client, to, Target::Name("svc.test", 80)).unwrap_or_else(|refused| panic!("{refused:?}"));
        let (server, _) = wait::some(wait::SOON, "the server is connected to", || self.listener.accept().ok());
        server.set_nonblocking(false).expect("blocking");
        let (client, server) = thread::scope(|scope| {
            let serving = scope.spawn(|| play(server, &script, &script.server, "server"));
            let client = play(client, &script, &script.client, "client");
            (client, serving.join().expect("the server's side"))
        });
        let line = wait::some(wait::SOON, "a line", || self.lines().into_iter().nth(seen));
        let context = || {
            format!(
                "UNDERPASS_SEED={seed}: {}\n{script:#?}\n{client:#?}\n{server:#?}",
                line.text
            )
        };
        let finish = judge(&script, &client, &server).unwrap_or_else(|why| panic!("{why}\n{}", context()));
        line.assert_ends(finish);
        for (key, most, least) in [
            ("sent_bytes", client.written.most, server.read.least),
            ("received_bytes", server.written.most, client.read.least),
        ] {
            assert!((least..=most).contains(&line.number(key)), "{key}: {}", context());
        }
    }

    /// Those of its endpoint.
    fn lines(&self) -> Vec<AccessLine> {
        let endpoint = self.endpoint.to_string();
        let mut lines = self.mesh.waypoint.access_lines();
        lines.retain(|line| line.field("dst.addr") == endpoint);
        lines
    }
}

/// One side, in a process of its own if it is to be killed.
fn play(stream: TcpStream, script: &Script, plan: &Plan, side: &str) -> Seen {
    match plan.ending {
        Ending::Killed { written } => {
            ChildPeer::start(env!("CARGO_BIN_EXE_peer"), stream, script, side).kill_after(written)
        }
        _ => talk(stream, plan),
    }
}

/// Mutant: a connection whose policies nobody asks (`Onward::try_all` without `judge_by`).
#[test]
fn who_is_denied_reaches_nobody_and_the_log_says_by_which_policy() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let rules = ", authorization: [{name: others, namespace: shop, rules: [{from: [{source: {principals: ['cluster.local/ns/shop/sa/other']}}]}]}, \
                 {name: nobody, namespace: shop, action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}]";
    let mesh = Mesh::start(world, 1, |host| one(host, rules, &[address]));
    match mesh.open(0) {
        Err(Refused::Http(503)) => {}
        other => panic!("{other:?}"),
    }
    let line = mesh.line("the refusal", |line| line.field("reason") == "policy_denied");
    assert!(line.text.contains("policy[nobody]"), "{}", line.text);
    assert_eq!(line.field("src.identity"), id(GATEWAY), "{}", line.text);
    assert_eq!(server.accepted(), 0);
    let closed = mesh.waypoint.metrics();
    let labels = [("reporter", "waypoint"), ("response_flags", "DENY")];
    assert_eq!(closed.sum("istio_tcp_connections_closed_total", &labels), 1);
}

/// Mutants: `changed_chains` that finds none; `denied_by_chain` that denies nothing.
#[test]
fn a_change_of_policy_resets_what_it_denies_and_leaves_the_rest() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let served = |host: &Host, rules: &str| {
        format!(
            "services: [{{address: '{}', tcp: {{cluster: c{rules}}}}}, {{address: '{}', tcp: {{cluster: c}}}}], clusters: [{}]",
            host.at(SERVICE),
            host.at(SERVICE + 1),
            cluster("c", "", &[address])
        )
    };
    let allowed = |account: &str| {
        format!(
            ", authorization: [{{name: p, namespace: shop, rules: [{{from: [{{source: {{principals: ['cluster.local/ns/{account}']}}}}]}}]}}]"
        )
    };
    let mesh = Mesh::start(world, 2, |host| served(host, &allowed("shop/sa/gateway")));
    let (mut guarded, mut other) = (mesh.greeted(0).0, mesh.greeted(1).0);
    mesh.serve(&served(&mesh.host, &allowed("*")));
    for stream in [&mut guarded, &mut other] {
        Server::echo(stream, b"still there").expect("nobody denies it");
    }
    mesh.serve(&served(&mesh.host, &allowed("shop/sa/other")));
    assert!(is_broken(&mut guarded));
    let line = mesh.line("its end", |line| line.field("reason") == "policy_revoked");
    assert!(line.text.contains("rbac_access_denied"), "{}", line.text);
    wait::eventually(wait::SOON, "the endpoint's side is reset", || server.resets() == 1);
    Server::echo(&mut other, b"still there").expect("nobody denies it");
}

#[test]
fn clusters_get_their_shares() {
    const CONNECTIONS: usize = 200;
    let world = World::loopback();
    let servers = [(); 3].map(|()| Server::start(&world.host(), PORT));
    let addresses = [0, 1, 2].map(|place: usize| servers[place].address());
    let mesh = Mesh::start(world, 1, |host| {
        let clusters = [("a", 0), ("b", 1), ("none", 2)].map(|(name, place)| cluster(name, "", &[addresses[place]]));
        format!(
            "services: [{{address: '{}', tcp: {{clusters: [{{cluster: a, weight: 3}}, {{cluster: none, weight: 0}}, {{cluster: b, weight: 1}}]}}}}], clusters: [{}]",
            host.at(SERVICE),
            clusters.join(", ")
        )
    });
    for _ in 0..CONNECTIONS {
        drop(mesh.greeted(0));
    }
    let [a, b, none] = [0, 1, 2].map(|place: usize| servers[place].accepted());
    assert_eq!((a + b, none), (CONNECTIONS, 0));
    // Each of six standard deviations.
    assert!(
        (14..=86).contains(&b),
        "{b} of {CONNECTIONS}, a quarter of which is meant"
    );
}

#[test]
fn a_client_stays_with_the_endpoint_that_its_address_leads_to() {
    let world = World::loopback();
    let servers = [(); 4].map(|()| Server::start(&world.host(), PORT));
    let addresses = [0, 1, 2, 3].map(|place: usize| servers[place].address());
    let mesh = Mesh::start(world, 1, |host| {
        format!(
            "services: [{{address: '{}', tcp: {{cluster: c, hash_source_ip: true}}}}], clusters: [{}]",
            host.at(SERVICE),
            cluster("c", ", balancing: ring-hash", &addresses)
        )
    });
    let first = mesh.greeted(0).1;
    for _ in 0..20 {
        assert_eq!(mesh.greeted(0).1, first);
    }
}

#[test]
fn who_does_not_answer_has_another_tried_in_its_place() {
    let world = World::loopback();
    let (host, down) = (world.host(), world.host().at(PORT));
    let server = Server::start(&host, PORT);
    let address = server.address();
    let mesh = Mesh::start(world, 1, |host| one(host, "", &[down, address]));
    for _ in 0..8 {
        assert_eq!(mesh.greeted(0).1, address);
    }
    drop(server);
    match mesh.open(0) {
        Err(Refused::Http(503)) => {}
        other => panic!("{other:?}"),
    }
    let line = mesh.line("the refusal", |line| line.field("reason") == "connect_failed");
    assert_eq!(line.field("response_flags"), "UF");
}

#[test]
fn no_more_connections_are_made_than_the_cluster_may_have() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let mesh = Mesh::start(world, 1, |host| {
        format!(
            "services: [{{address: '{}', tcp: {{cluster: c}}}}], clusters: [{}]",
            host.at(SERVICE),
            cluster("c", ", limits: {connections: 1}", &[address])
        )
    });
    let first = mesh.greeted(0).0;
    match mesh.open(0) {
        Err(Refused::Http(503)) => {}
        other => panic!("{other:?}"),
    }
    let line = mesh.line("the refusal", |line| line.field("reason") == "connection_limit");
    assert_eq!(line.field("response_flags"), "UO");
    drop(first);
    wait::eventually(wait::SOON, "its place is free again", || mesh.open(0).is_ok());
}

#[test]
fn limits_of_time_reset_both_sides() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let mesh = Mesh::start(world, 2, |host| {
        let services = [("idle_timeout", 0), ("max_duration", 1)].map(|(limit, number)| {
            format!(
                "{{address: '{}', tcp: {{cluster: c, {limit}: 300ms}}}}",
                host.at(SERVICE + number)
            )
        });
        format!(
            "services: [{}], clusters: [{}]",
            services.join(", "),
            cluster("c", "", &[address])
        )
    });
    for (number, reason, flags) in [(0, "idle_timeout", "SI"), (1, "duration_timeout", "DT")] {
        let mut stream = mesh.greeted(number).0;
        assert!(is_broken(&mut stream), "{reason}");
        let line = mesh.line("its end", |line| line.field("reason") == reason);
        assert_eq!(line.field("response_flags"), flags);
    }
    wait::eventually(wait::SOON, "the endpoint's sides are reset", || server.resets() == 2);
}

/// Mutant: what was read to find out what is spoken is not sent on (`End::tunnel` without `early`).
#[test]
fn what_a_client_speaks_decides_and_a_server_may_speak_first() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let mesh = Mesh::start(world, 2, |host| {
        let services = [(0, "300ms"), (1, "0s")].map(|(number, patience)| {
            format!(
                "{{address: '{}', routes: web, tcp: {{cluster: c, detection_timeout: {patience}}}}}",
                host.at(SERVICE + number)
            )
        });
        format!(
            "services: [{}], clusters: [{}], routes: [{{name: web, virtual_hosts: [{{name: a, domains: ['*'], routes: [{{direct: {{status: 200, body: of the table}}}}]}}]}}]",
            services.join(", "),
            cluster("c", "", &[address])
        )
    });
    for number in [0, 1] {
        let answer = get(&mesh.client, mesh.listener(number), "/");
        assert!(answer.0.ends_with("of the table"), "{answer:?}");
    }
    let reached = server.accepted();
    assert_eq!(reached, 0, "requests go through the table");
    // The server greets a client that has said nothing.
    let mut silent = mesh.greeted(0).0;
    Server::echo(&mut silent, b"hello").expect("carried");
    // What shows that it is no HTTP is passed on; also if its client then says no more.
    for number in [0, 1] {
        let mut speaking = mesh.open(number).unwrap_or_else(|refused| panic!("{refused:?}"));
        let said = b"\x00no HTTP at all, and more of it\r\n";
        speaking.write_all(said).expect("sent");
        speaking.shutdown(Shutdown::Write).expect("ended");
        let mut all = Vec::new();
        speaking.set_read_timeout(Some(wait::soon())).expect("a socket");
        speaking.read_to_end(&mut all).expect("an end");
        let greeting = format!("{address}\n");
        assert_eq!(all, [greeting.as_bytes(), said].concat());
    }
}

#[test]
fn an_endpoint_sees_a_reset_when_the_clients_proxy_is_gone() {
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let mut mesh = Mesh::start(world, 1, |host| one(host, "", &[address]));
    let mut stream = mesh.greeted(0).0;
    Server::echo(&mut stream, b"hello").expect("carried");
    mesh.near.process().kill();
    wait::eventually(wait::SOON, "the endpoint's side is reset", || server.resets() == 1);
    let line = mesh.line("its end", |line| line.field("reason") == "downstream_reset");
    assert_eq!(line.number("sent_bytes"), 5);
}

#[test]
fn a_drain_loses_nothing() {
    const MORE: usize = 4 << 20;
    let world = World::loopback();
    let server = Server::start(&world.host(), PORT);
    let address = server.address();
    let mut mesh = Mesh::start(world, 1, |host| one(host, "", &[address]));
    let mut stream = mesh.greeted(0).0;
    mesh.waypoint.process().signal(Signal::SIGTERM).expect("the proxy runs");
    wait::eventually(wait::SOON, "it takes no more", || mesh.open(0).is_err());
    let said: Vec<u8> = (0..MORE).map(|place| place as u8).collect();
    let mut reading = stream.try_clone().expect("a socket");
    let heard = thread::spawn(move || {
        let mut all = vec![0; MORE];
        reading.set_read_timeout(Some(wait::soon())).expect("a socket");
        reading.read_exact(&mut all).map(|()| all)
    });
    stream.write_all(&said).expect("sent");
    let all = heard.join().expect("the reader").expect("all of it");
    assert!(all == said, "what came is not what was said");
    drop(stream);
    let status = mesh.waypoint.process().wait(wait::SOON);
    assert!(status.success(), "{status}");
}
