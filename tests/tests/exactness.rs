//! A relay that can't be told from a wire: every byte in order, EOF as EOF, RST as RST, and counters that equal what the peers
//! counted. Hundreds of random conversations, each held directly first (the rules must hold without a proxy), then through a
//! listener of every kind.
//!
//! `UNDERPASS_CYCLES` sets the number of conversations, `UNDERPASS_SEED` the first one's seed (a failure prints its own).

use std::env;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use underpass_tests::conversation::{ChildPeer, Ending, Finish, Plan, Script, Seen, judge, talk};
use underpass_tests::{
    AccessLine, Config, Host, Listen, Metrics, Need, Proxy, Target, Way, World, available, open, wait,
};

const DEFAULT_CYCLES: u64 = 320;
/// Of a receive buffer (the kernel doubles it).
const NARROW: usize = 16 * 1024;
/// Conversations held at a time, each lane with a destination port of its own.
const LANES: u16 = 4;
const DESTINATION_PORT: u16 = 9000;
const SERVICE: &str = "db.shop.svc.cluster.local";

#[test]
fn random_conversations_are_those_of_a_wire() {
    let world = World::loopback();
    let [proxy_host, virtual_ip] = [(); 2].map(|()| world.host());
    Relay::start(world, proxy_host, virtual_ip.ip()).hold_conversations();
}

/// The same over veths: segments of 1448 bytes, and a kernel in between that forwards them.
#[test]
fn random_conversations_between_pods_are_those_of_a_wire() {
    if !available(&[Need::Root, Need::Program("ip")]) {
        return;
    }
    let world = World::cluster(1);
    let node = world.node(0);
    Relay::start(world, node, [10, 96, 0, 10].into()).hold_conversations();
}

/// A destination service with a port for every lane, a proxy before it, and two clients whose counters are kept apart: one for what
/// ends in order, one for what doesn't.
struct Relay {
    proxy: Proxy,
    proxy_host: Host,
    tidy: Host,
    rough: Host,
    server: Host,
    virtual_ip: IpAddr,
    _world: World,
}

impl Relay {
    fn start(world: World, proxy_host: Host, virtual_ip: IpAddr) -> Self {
        let [tidy, rough, server] = [(); 3].map(|()| world.host());
        let ports: Vec<String> = (0..LANES)
            .map(|lane| format!("{{port: {}}}", DESTINATION_PORT + lane))
            .collect();
        let service = format!(
            "vips: [{virtual_ip}], ports: [{}], endpoints: [shop/db-1]",
            ports.join(", ")
        );
        let mut config = Config::new()
            .listener("socks", proxy_host.at(1080), Listen::Socks5)
            .listener("connect", proxy_host.at(3128), Listen::Connect)
            .workload("shop/tidy", tidy.ip(), "")
            .workload("shop/rough", rough.ip(), "")
            .workload("shop/db-1", server.ip(), "")
            .service("shop/db", service);
        for lane in 0..LANES {
            let destination = Listen::fixed(format!("{SERVICE}:{}", DESTINATION_PORT + lane));
            config = config.listener(&format!("relay-{lane}"), proxy_host.at(15001 + lane), destination);
        }
        let proxy = Proxy::start(&world, &proxy_host, &config);
        Self {
            proxy,
            proxy_host,
            tidy,
            rough,
            server,
            virtual_ip,
            _world: world,
        }
    }

    /// Holds as many conversations as asked for; then the counters must say what the peers say.
    fn hold_conversations(&self) {
        let first = setting("UNDERPASS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
        let cycles = setting("UNDERPASS_CYCLES").unwrap_or(DEFAULT_CYCLES);
        let [mut tidy, mut rough] = <[Tally; 2]>::default();
        thread::scope(|scope| {
            let hold_lane = |number: u16| {
                let lane = Lane::new(self, number);
                let scripts =
                    scripts(first, cycles).filter(|script| script.seed % u64::from(LANES) == u64::from(number));
                scripts.map(|script| lane.hold(&script)).collect::<Vec<_>>()
            };
            let lanes: Vec<_> = (0..LANES)
                .map(|number| scope.spawn(move || hold_lane(number)))
                .collect();
            for outcome in lanes.into_iter().flat_map(|lane| lane.join().expect("a lane")) {
                if outcome.clean {
                    tidy.add(&outcome)
                } else {
                    rough.add(&outcome)
                }
            }
        });
        assert_eq!(
            tidy.connections + rough.connections,
            scripts(first, cycles).count() as u64
        );
        let (known, bounds) = ((tidy.sent.0, tidy.received.0), (tidy.sent.1, tidy.received.1));
        assert_eq!(known, bounds, "known exactly where both ended in order");
        let metrics = self.proxy.metrics();
        tidy.assert_equals_metrics(&metrics, "tidy");
        rough.assert_equals_metrics(&metrics, "rough");
    }
}

/// On links that lose packets (`make test-kernels`) only those that end in order: a reset that is lost is not sent again, so whoever
/// waits for it may wait for ever, with or without a proxy.
fn scripts(first: u64, cycles: u64) -> impl Iterator<Item = Script> {
    let loses = env::var("UNDERPASS_NETEM").is_ok_and(|links| links != "clean");
    let all = (first..first + cycles).map(Script::new);
    all.filter(move |script| !loses || script.is_clean())
}

/// Holds conversations one after the other, so that what its destination accepts belongs to what was just opened.
struct Lane<'a> {
    relay: &'a Relay,
    listener: TcpListener,
    tidy: Host,
    rough: Host,
    destination: SocketAddr,
    ways: [Way; 3],
}

struct Outcome {
    clean: bool,
    source: SocketAddr,
    client: Seen,
    server: Seen,
    line: Option<AccessLine>,
}

impl<'a> Lane<'a> {
    fn new(relay: &'a Relay, number: u16) -> Self {
        let proxy = &relay.proxy_host;
        let port = DESTINATION_PORT + number;
        // With little room at the receiver the relay's own send queue fills up, and takes only parts of what it is given.
        let narrow = |host: &Host| {
            if number % 2 == 1 {
                host.with_receive_buffer(NARROW)
            } else {
                host.clone()
            }
        };
        let listener = narrow(&relay.server).listen(port);
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let ways = [
            Way::Fixed(proxy.at(15001 + number)),
            Way::Socks5(proxy.at(1080)),
            Way::Connect(proxy.at(3128)),
        ];
        Self {
            relay,
            listener,
            tidy: narrow(&relay.tidy),
            rough: narrow(&relay.rough),
            destination: relay.server.at(port),
            ways,
        }
    }

    /// The control without a proxy, then the same script through it, judged by the same rules.
    fn hold(&self, script: &Script) -> Outcome {
        let way = self.ways[(script.seed % 3) as usize];
        let judged = |way| {
            let outcome = self.converse(way, script);
            let finish = judge(script, &outcome.client, &outcome.server).unwrap_or_else(|why| {
                panic!(
                    "UNDERPASS_SEED={} UNDERPASS_CYCLES=1, {way:?}: {why}\n{script:#?}",
                    script.seed
                )
            });
            (outcome, finish)
        };
        let (_, direct) = judged(Way::Direct);
        let (mut outcome, relayed) = judged(way);
        assert_eq!(direct, relayed, "the script determines how it ends");
        let line = self.relay.proxy.access_line(outcome.source);
        outcome.assert_logged(&line, relayed);
        outcome.line = Some(line);
        outcome
    }

    fn converse(&self, way: Way, script: &Script) -> Outcome {
        let clean = script.is_clean();
        let host = if clean { &self.tidy } else { &self.rough };
        let port = self.destination.port();
        // Clients know a service by its name or by its virtual address.
        let target = match way {
            Way::Direct => Target::Address(self.destination),
            _ if script.seed.is_multiple_of(2) => Target::Address((self.relay.virtual_ip, port).into()),
            _ => Target::Name(SERVICE, port),
        };
        let client = open(host, way, target).unwrap_or_else(|e| panic!("open by {way:?}: {e:?}"));
        let source = client.local_addr().expect("a connected socket");
        let (server, _) = wait::some(wait::SOON, "the destination is connected to", || {
            self.listener.accept().ok()
        });
        let (client, server) = thread::scope(|scope| {
            let serving = scope.spawn(|| play(server, script, &script.server, "server"));
            let client = play(client, script, &script.client, "client");
            (client, serving.join().expect("the server's side"))
        });
        Outcome {
            clean,
            source,
            client,
            server,
            line: None,
        }
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

impl Outcome {
    /// The line counts no byte that its reader may lack, and every byte that its reader has.
    fn assert_logged(&self, line: &AccessLine, finish: Finish) {
        let directions = [
            ("sent_bytes", &self.client, &self.server),
            ("received_bytes", &self.server, &self.client),
        ];
        for (key, writer, reader) in directions {
            let possible = reader.read.least..=writer.written.most;
            assert!(
                possible.contains(&line.number(key)),
                "{key} should be in {possible:?}: {}",
                line.text
            );
        }
        line.assert_ends(finish);
    }
}

/// What a group of connections moved: as its peers know it (between bounds), and as the log says.
#[derive(Default)]
struct Tally {
    connections: u64,
    sent: (u64, u64),
    received: (u64, u64),
    logged_sent: u64,
    logged_received: u64,
}

impl Tally {
    fn add(
        &mut self,
        Outcome {
            client, server, line, ..
        }: &Outcome,
    ) {
        self.connections += 1;
        self.sent = (self.sent.0 + server.read.least, self.sent.1 + client.written.most);
        self.received = (
            self.received.0 + client.read.least,
            self.received.1 + server.written.most,
        );
        let line = line.as_ref().expect("relayed conversations are logged");
        self.logged_sent += line.number("sent_bytes");
        self.logged_received += line.number("received_bytes");
    }

    /// The counters of every family say what the log's lines say.
    fn assert_equals_metrics(&self, metrics: &Metrics, workload: &str) {
        assert!(
            (self.sent.0..=self.sent.1).contains(&self.logged_sent),
            "sent by {workload}"
        );
        assert!(
            (self.received.0..=self.received.1).contains(&self.logged_received),
            "received by {workload}"
        );
        let labels = [("source_workload", workload), ("reporter", "source")];
        // Kmesh counts from the client's side, Istio from the server's: "received" is the request.
        for (family, sent, received) in [
            ("kmesh_tcp_workload", "sent", "received"),
            ("kmesh_tcp", "sent", "received"),
            ("istio_tcp", "received", "sent"),
        ] {
            for (what, expected) in [
                (format!("{sent}_bytes"), self.logged_sent),
                (format!("{received}_bytes"), self.logged_received),
                ("connections_opened".to_owned(), self.connections),
                ("connections_closed".to_owned(), self.connections),
            ] {
                let name = format!("{family}_{what}_total");
                assert_eq!(metrics.sum(&name, &labels), expected, "{name} of {workload}");
            }
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
    })
}
