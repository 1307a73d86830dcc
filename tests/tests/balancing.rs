//! Where connections go: the spread over endpoints, what happens to those that are unhealthy, far away, dead or gone, and the limits
//! on how many there may be.

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_tests::{
    AccessLine, Blackhole, Config, Host, Listen, Proxy, Refused, Server, Target, Way, World, is_reset, open, wait,
};

#[test]
fn connections_go_to_the_endpoints_with_fewer_of_them() {
    let place = Place::start(4, |place| place.config(&["", "", "", ""], "", ""));
    let mut open: Vec<(SocketAddr, TcpStream)> = (0..200).map(|_| place.reach()).collect();
    let counts = count(&open);
    let (most, least) = (counts.values().max(), counts.values().min());
    // Two random choices stay within a few of each other whatever the number of connections; one random choice does not
    // (a standard deviation of 6 here).
    assert!(
        counts.len() == 4 && most.zip(least).is_some_and(|(m, l)| m - l <= 6),
        "an even spread: {counts:?}"
    );

    // All of one endpoint's connections end: it is now the choice whenever it is one of the two.
    let emptied = place.servers[0].address();
    open.retain(|(server, _)| *server != emptied);
    wait::eventually(wait::SOON, "its connections are gone", || place.servers[0].open() == 0);
    wait::eventually(wait::SOON, "the proxy knows", || {
        place.proxy.connections().len() == open.len()
    });
    let again: Vec<(SocketAddr, TcpStream)> = (0..100).map(|_| place.reach()).collect();
    let back = count(&again)[&emptied];
    // Half of them are expected, 25 were it blind to load.
    assert!(back >= 37, "{back} of 100 went to the endpoint without connections");
}

#[test]
fn an_unhealthy_endpoint_gets_no_new_connections_and_keeps_its_own() {
    let place = Place::start(2, |place| place.config(&["", ""], "", ""));
    let mut kept = place.reach_server(0);
    place.proxy.apply(&place.config(&["health: unhealthy", ""], "", ""));
    for _ in 0..20 {
        assert_eq!(place.reach().0, place.servers[1].address());
    }
    Server::echo(&mut kept, b"still mine").expect("being unhealthy ends nothing");

    place
        .proxy
        .apply(&place.config(&["health: unhealthy", "health: unhealthy"], "", ""));
    place.assert_refused("no_healthy_endpoint", "UH");
    for (way, code) in [(place.socks(), 0), (place.connect(), 503)] {
        match open(&place.client, way, Target::Name("web.shop.svc.cluster.local", 80)) {
            Err(Refused::Socks(_)) => {}
            Err(Refused::Http(status)) => assert_eq!(status, code),
            other => panic!("{way:?}: a refusal, not {other:?}"),
        }
    }

    let allow_all = "load_balancing: {mode: any, health: allow-all}";
    place
        .proxy
        .apply(&place.config(&["health: unhealthy", "health: unhealthy"], "", allow_all));
    place.reach();
}

#[test]
fn failover_goes_to_the_nearest_locality_that_is_healthy() {
    let near = "locality: {region: r1, zone: z1}";
    let zone = "locality: {region: r1, zone: z2}";
    let far = "locality: {region: r2, zone: z1}";
    let failover = "load_balancing: {mode: failover, scopes: [region, zone]}";
    let ill = |locality: &str| format!("{locality}, health: unhealthy");
    let place = Place::start(3, |place| place.config(&[near, zone, far], near, failover));
    let all_go_to = |n: usize, why: &str| {
        for _ in 0..10 {
            assert_eq!(place.reach().0, place.servers[n].address(), "{why}");
        }
    };
    all_go_to(0, "same zone");
    place
        .proxy
        .apply(&place.config(&[&ill(near), zone, far], near, failover));
    all_go_to(1, "same region");
    place
        .proxy
        .apply(&place.config(&[&ill(near), &ill(zone), far], near, failover));
    all_go_to(2, "anywhere");
    place
        .proxy
        .apply(&place.config(&[near, &ill(zone), far], near, failover));
    all_go_to(0, "the same zone again");
    // The client's place decides, not the node's.
    place.proxy.apply(&place.config(&[near, zone, far], far, failover));
    all_go_to(2, "the client has moved");

    let strict = "load_balancing: {mode: strict, scopes: [region]}";
    place.proxy.apply(&place.config(&[near, zone, &ill(far)], far, strict));
    place.assert_refused("no_healthy_endpoint", "UH");
}

#[test]
fn passthrough_goes_to_the_address_that_was_asked_for() {
    let place = Place::start(1, |place| place.config(&[""], "", ""));
    let asked_for = Server::start(&place.world.host(), 80);
    let service = format!(
        "vips: [{}], load_balancing: {{mode: passthrough}}",
        asked_for.address().ip()
    );
    place.proxy.apply(&place.config(&[""], "", &service));
    for way in [place.socks(), place.connect()] {
        let mut stream = open(&place.client, way, Target::Address(asked_for.address())).expect("connect");
        assert_eq!(Server::greeting(&mut stream).expect("a greeting"), asked_for.address());
        let source = stream.local_addr().expect("connected");
        drop(stream);
        assert_eq!(
            place.proxy.access_line(source).field("dst.service"),
            "web.shop.svc.cluster.local"
        );
    }
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let place = Place::start(3, |place| place.config(&["", "", ""], "", ""));
    let Place { servers, .. } = &place;
    let alive = servers[2].address();
    let place = place.without_servers(&[0, 1]);
    for _ in 0..30 {
        let (server, stream) = place.reach();
        assert_eq!(server, alive);
        let source = stream.local_addr().expect("connected");
        drop(stream);
        let line = place.proxy.access_line(source);
        line.assert_reason("completed", "-");
        assert_eq!(line.field("dst.addr"), alive.to_string());
    }
    let place = place.without_servers(&[0]);
    let line = place.assert_refused("connect_failed", "UF");
    assert!(line.field("detail").contains("refused"), "{}", line.text);
    let metrics = place.proxy.metrics();
    let failed = [("response_flags", "UF")];
    assert_eq!(
        metrics.sum("istio_tcp_connections_closed_total", &failed),
        1,
        "counted once, not once an attempt"
    );
}

#[test]
fn an_endpoint_that_does_not_answer_is_passed_over_after_the_connect_time_out() {
    let setting = "timeouts: {connect: 200ms}";
    let place = Place::start(2, |place| place.config(&["", ""], "", "").node(setting));
    let silent = place.servers[0].address();
    let place = place.without_servers(&[0]);
    let _hole = Blackhole::start(&place.hosts[0], silent.port());
    let mut slow = 0;
    for _ in 0..12 {
        let start = Instant::now();
        assert_eq!(place.reach().0, place.servers[0].address());
        slow += usize::from(start.elapsed() >= Duration::from_millis(200));
    }
    assert!(slow > 0, "some connections first tried the silent endpoint");

    let place = place.without_servers(&[0]);
    place
        .proxy
        .apply(&place.config(&["", "health: unhealthy"], "", "").node(setting));
    place.assert_refused("connect_timeout", "UF");
}

#[test]
fn an_endpoint_that_is_removed_drains() {
    let setting = "timeouts: {drain: 500ms}";
    let place = Place::start(2, |place| place.config(&["", ""], "", "").node(setting));
    let mut leaving = place.reach_server(0);
    let mut staying = place.reach_server(1);
    let source = leaving.local_addr().expect("connected");
    let removed = Instant::now();
    place
        .proxy
        .apply(&place.config_of(&[1], &["", ""], "", "").node(setting));
    Server::echo(&mut leaving, b"last words").expect("a removed endpoint's connections may finish");
    for _ in 0..20 {
        assert_eq!(place.reach().0, place.servers[1].address());
    }
    let end = leaving.read(&mut [0]).expect_err("reset after the drain time");
    assert!(is_reset(&end), "{end}");
    assert!(
        removed.elapsed() >= Duration::from_millis(500),
        "not before the drain time"
    );
    place
        .proxy
        .access_line(source)
        .assert_reason("endpoint_drained", "DRAIN");
    Server::echo(&mut staying, b"not concerned").expect("the other endpoint's connections stay");
}

#[test]
fn an_endpoint_that_comes_back_while_draining_keeps_its_connections() {
    let setting = "timeouts: {drain: 400ms}";
    let place = Place::start(2, |place| place.config(&["", ""], "", "").node(setting));
    let mut stream = place.reach_server(0);
    place
        .proxy
        .apply(&place.config_of(&[1], &["", ""], "", "").node(setting));
    place.proxy.apply(&place.config(&["", ""], "", "").node(setting));
    let back = Instant::now();
    wait::eventually(wait::SOON, "the drain time passes", || {
        Server::echo(&mut stream, b"alive").expect("the connection stays");
        back.elapsed() > Duration::from_millis(800)
    });
}

#[test]
fn limits_hold_for_a_workload_a_namespace_and_the_node() {
    for (limits, allowed) in [
        // (limit, how many of: first client, second client of its namespace, client of another namespace)
        ("connections_per_workload: 3", [3, 3, 3]),
        ("connections_per_namespace: 3", [3, 0, 3]),
        ("connections: 3", [3, 0, 0]),
    ] {
        let place = Place::start(1, |place| {
            place.config(&[""], "", "").node(format!("limits: {{{limits}}}"))
        });
        let mut open = Vec::new();
        let clients = [&place.client, &place.neighbour, &place.foreigner];
        for (host, allowed) in clients.into_iter().zip(allowed) {
            for _ in 0..allowed {
                let mut stream = host.connect(place.relay()).expect("connect");
                Server::greeting(&mut stream).unwrap_or_else(|e| panic!("{limits}: within the limit: {e}"));
                open.push((host.ip(), stream));
            }
            place.assert_refused_to(host, "connection_limit", "UO");
        }
        assert_eq!(
            place.servers[0].accepted(),
            open.len(),
            "{limits}: the server sees no refused connection"
        );
        // A place that is given back can be taken again.
        let first = open.remove(0).1;
        let source = first.local_addr().expect("connected");
        drop(first);
        place.proxy.access_line(source);
        wait::eventually(wait::SOON, "its place is free", || {
            place
                .client
                .connect(place.relay())
                .and_then(|mut stream| Server::greeting(&mut stream))
                .is_ok()
        });
    }
}

struct Place {
    proxy_host: Host,
    client: Host,
    /// Another workload of the client's namespace, and one of another namespace.
    neighbour: Host,
    foreigner: Host,
    hosts: Vec<Host>,
    servers: Vec<Server>,
    proxy: Proxy,
    world: World,
}

/// What a configuration needs to know, before there is a proxy.
struct Layout<'a> {
    proxy_host: &'a Host,
    clients: [&'a Host; 3],
    hosts: &'a [Host],
}

impl Place {
    fn start(servers: usize, config: impl FnOnce(&Layout<'_>) -> Config) -> Self {
        let world = World::loopback();
        let [proxy_host, client, neighbour, foreigner] = [(); 4].map(|()| world.host());
        let hosts: Vec<Host> = (0..servers).map(|_| world.host()).collect();
        let servers = hosts.iter().map(|host| Server::start(host, 8080)).collect();
        let layout = Layout {
            proxy_host: &proxy_host,
            clients: [&client, &neighbour, &foreigner],
            hosts: &hosts,
        };
        let proxy = Proxy::start(&world, &proxy_host, &config(&layout));
        Self {
            proxy_host,
            client,
            neighbour,
            foreigner,
            hosts,
            servers,
            proxy,
            world,
        }
    }

    /// See [`Layout::config`].
    fn config(&self, endpoints: &[&str], client: &str, service: &str) -> Config {
        let all: Vec<usize> = (0..endpoints.len()).collect();
        self.config_of(&all, endpoints, client, service)
    }

    fn config_of(&self, members: &[usize], endpoints: &[&str], client: &str, service: &str) -> Config {
        let clients = [&self.client, &self.neighbour, &self.foreigner];
        let layout = Layout {
            proxy_host: &self.proxy_host,
            clients,
            hosts: &self.hosts,
        };
        layout.config_of(members, endpoints, client, service)
    }

    fn relay(&self) -> SocketAddr {
        self.proxy_host.at(15001)
    }

    fn socks(&self) -> Way {
        Way::Socks5(self.proxy_host.at(1080))
    }

    fn connect(&self) -> Way {
        Way::Connect(self.proxy_host.at(3128))
    }

    /// Opens a connection and answers where it went.
    fn reach(&self) -> (SocketAddr, TcpStream) {
        let mut stream = self.client.connect(self.relay()).expect("connect");
        let server = Server::greeting(&mut stream).expect("a greeting");
        (server, stream)
    }

    /// Opens connections until one goes to server `n`.
    fn reach_server(&self, n: usize) -> TcpStream {
        let wanted = self.servers[n].address();
        wait::some(wait::SOON, "a connection to that server", || {
            let (server, stream) = self.reach();
            (server == wanted).then_some(stream)
        })
    }

    /// A new connection of the client is reset without having reached anything, for this reason.
    fn assert_refused(&self, reason: &str, flags: &str) -> AccessLine {
        self.assert_refused_to(&self.client, reason, flags)
    }

    fn assert_refused_to(&self, host: &Host, reason: &str, flags: &str) -> AccessLine {
        let (source, stream) = host.dial(self.relay());
        // The reset may be there before connect() returns.
        let end = stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(wait::SOON))?;
            stream.read(&mut [0])
        });
        let end = end.expect_err("a reset");
        assert!(is_reset(&end), "{end}");
        let line = self.proxy.access_line(source);
        line.assert_reason(reason, flags);
        line
    }

    /// The same place after some servers have gone (counted among those that are left).
    fn without_servers(mut self, gone: &[usize]) -> Self {
        let servers = std::mem::take(&mut self.servers).into_iter().enumerate();
        self.servers = servers
            .filter(|(n, _)| !gone.contains(n))
            .map(|(_, server)| server)
            .collect();
        self
    }
}

impl Layout<'_> {
    /// A service with an endpoint on each host, with the fields given; `client` and `service` are further fields of those.
    fn config(&self, endpoints: &[&str], client: &str, service: &str) -> Config {
        let all: Vec<usize> = (0..endpoints.len()).collect();
        self.config_of(&all, endpoints, client, service)
    }

    /// Only `members` are endpoints of the service.
    fn config_of(&self, members: &[usize], endpoints: &[&str], client: &str, service: &str) -> Config {
        let names: Vec<String> = members.iter().map(|n| format!("shop/web-{n}")).collect();
        let fields = format!(
            "ports: [{{port: 80, target_port: 8080}}], endpoints: [{}], {service}",
            names.join(", ")
        );
        let mut config = Config::new()
            .listener(
                "relay",
                self.proxy_host.at(15001),
                Listen::fixed("web.shop.svc.cluster.local:80"),
            )
            .listener("socks", self.proxy_host.at(1080), Listen::Socks5)
            .listener("connect", self.proxy_host.at(3128), Listen::Connect)
            .workload("shop/client", self.clients[0].ip(), client)
            .workload("shop/neighbour", self.clients[1].ip(), "")
            .workload("bank/foreigner", self.clients[2].ip(), "")
            .service("shop/web", fields);
        for (n, (host, fields)) in self.hosts.iter().zip(endpoints).enumerate() {
            config = config.workload(&format!("shop/web-{n}"), host.ip(), fields);
        }
        config
    }
}

fn count(connections: &[(SocketAddr, TcpStream)]) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    for (server, _) in connections {
        *counts.entry(*server).or_default() += 1;
    }
    counts
}
