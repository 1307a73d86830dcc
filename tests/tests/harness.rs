//! The harness against itself: conversations keep their rules on a wire and through a faithful relay, and every way in which a relay
//! can be unfaithful is found. What passes here gives `exactness.rs` its meaning.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use underpass_tests::conversation::{ChildPeer, Ending, Plan, Script, Seen, judge, talk};
use underpass_tests::{Blackhole, Host, Need, Server, World, available, wait};

#[test]
fn conversations_on_a_wire_keep_the_rules() {
    let world = World::loopback();
    let place = Place::new(&world);
    for seed in 0..80 {
        place
            .converse(seed, None)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn conversations_through_a_faithful_relay_keep_the_rules() {
    let world = World::loopback();
    let place = Place::new(&world);
    for seed in 0..80 {
        place
            .converse(seed, Some(Fault::None))
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn every_unfaithful_relay_is_found() {
    let world = World::loopback();
    let place = Place::new(&world);
    for fault in Fault::ALL {
        let found = (0..40).find_map(|seed| place.converse(seed, Some(fault)).err());
        assert!(found.is_some(), "a relay that {fault:?} is not told from a wire");
    }
}

#[test]
fn pods_reach_each_other_across_nodes_by_their_own_addresses() {
    if !available(&[Need::Root, Need::Program("ip")]) {
        return;
    }
    let world = World::cluster(2);
    let (near, far) = (world.pod(0), world.pod(1));
    for destination in [world.node(0), world.node(1), world.pod(0), world.pod(1)] {
        for ip in [destination.ip(), destination.ip6()] {
            let server = Server::start_at(&destination, (ip, 80).into());
            for client in [&near, &far] {
                let mut stream = client.connect(server.address()).unwrap_or_else(|e| panic!("{ip}: {e}"));
                assert_eq!(Server::greeting(&mut stream).expect("a greeting"), server.address());
                assert!([client.ip(), client.ip6()].contains(&stream.local_addr().expect("connected").ip()));
            }
        }
    }
}

#[test]
fn a_blackhole_swallows_connects() {
    let world = World::loopback();
    let host = world.host();
    let _hole = Blackhole::start(&host, 8080);
    let address = host.at(8080);
    let answer = TcpStream::connect_timeout(&address, Duration::from_millis(500));
    assert_eq!(answer.map(|_| ()).map_err(|e| e.kind()), Err(ErrorKind::TimedOut));
}

/// What is wrong with a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    LosesAByte,
    DoublesAPiece,
    SwapsTwoBytes,
    TruncatesBeforeFin,
    EndsBothDirectionsAtTheFirstFin,
    ShowsAResetAsFin,
    ShowsFinAsAReset,
    DropsWhatIsQueuedAtFin,
}

impl Fault {
    const ALL: [Fault; 8] = [
        Fault::LosesAByte,
        Fault::DoublesAPiece,
        Fault::SwapsTwoBytes,
        Fault::TruncatesBeforeFin,
        Fault::EndsBothDirectionsAtTheFirstFin,
        Fault::ShowsAResetAsFin,
        Fault::ShowsFinAsAReset,
        Fault::DropsWhatIsQueuedAtFin,
    ];
}

struct Place {
    client: Host,
    relay: (TcpListener, SocketAddr, Host),
    server: (TcpListener, SocketAddr),
}

impl Place {
    fn new(world: &World) -> Self {
        let [client, relay, server] = [(); 3].map(|()| world.host());
        let (relay_listener, server_listener) = (relay.listen(15001), server.listen(9000));
        Self {
            client,
            relay: (relay_listener, relay.at(15001), relay),
            server: (server_listener, server.at(9000)),
        }
    }

    fn converse(&self, seed: u64, relay: Option<Fault>) -> Result<(), String> {
        let script = Script::new(seed);
        thread::scope(|scope| {
            let first_hop = if relay.is_some() { self.relay.1 } else { self.server.1 };
            let client = self.client.connect(first_hop).expect("connect");
            if let Some(fault) = relay {
                let (downstream, _) = self.relay.0.accept().expect("accept");
                let upstream = self.relay.2.connect(self.server.1).expect("connect");
                scope.spawn(move || SmallRelay::new(downstream, upstream, fault).run());
            }
            let (server, _) = self.server.0.accept().expect("accept");
            let serving = scope.spawn(|| play(server, &script, &script.server, "server"));
            let client = play(client, &script, &script.client, "client");
            judge(&script, &client, &serving.join().expect("the server's side")).map(|_| ())
        })
    }
}

fn play(stream: TcpStream, script: &Script, plan: &Plan, side: &str) -> Seen {
    match plan.ending {
        Ending::Killed { written } => {
            ChildPeer::start(env!("CARGO_BIN_EXE_peer"), stream, script, side).kill_after(written)
        }
        _ => talk(stream, plan),
    }
}

/// The simplest relay there is, with one thing wrong.
struct SmallRelay {
    sockets: [TcpStream; 2],
    fault: Fault,
    /// What was read from either socket and not yet written to the other.
    queued: [Vec<u8>; 2],
    ended: [bool; 2],
    passed_on: [bool; 2],
    moved: u64,
}

impl SmallRelay {
    fn new(downstream: TcpStream, upstream: TcpStream, fault: Fault) -> Self {
        for socket in [&downstream, &upstream] {
            socket.set_nonblocking(true).expect("O_NONBLOCK");
        }
        Self {
            sockets: [downstream, upstream],
            fault,
            queued: Default::default(),
            ended: [false; 2],
            passed_on: [false; 2],
            moved: 0,
        }
    }

    fn run(mut self) {
        while self.passed_on != [true, true] {
            self.wait();
            for from in [0, 1] {
                if self.step(from).is_err() {
                    if self.fault != Fault::ShowsAResetAsFin {
                        self.reset();
                    }
                    return;
                }
            }
            if self.fault == Fault::EndsBothDirectionsAtTheFirstFin && self.passed_on.contains(&true) {
                return;
            }
        }
    }

    fn wait(&self) {
        let wanted = [0, 1].map(|this: usize| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, !self.ended[this] && self.queued[this].is_empty());
            events.set(PollFlags::POLLOUT, !self.queued[1 - this].is_empty());
            events
        });
        let mut descriptors = [0, 1].map(|this| PollFd::new(self.sockets[this].as_fd(), wanted[this]));
        let timeout = PollTimeout::try_from(wait::SOON).expect("a few seconds");
        let _ = poll(&mut descriptors, timeout);
    }

    fn step(&mut self, from: usize) -> Result<(), ErrorKind> {
        let to = 1 - from;
        if !self.ended[from] && self.queued[from].is_empty() {
            let mut buffer = vec![0; 16 * 1024];
            match would_block(self.sockets[from].read(&mut buffer))? {
                Some(0) => self.ended[from] = true,
                Some(n) => self.queued[from] = self.spoil(&buffer[..n]),
                None => {}
            }
        }
        if !self.queued[from].is_empty() {
            let taken = would_block(self.sockets[to].write(&self.queued[from]))?.unwrap_or(0);
            self.queued[from].drain(..taken);
        }
        if self.ended[from] && self.queued[from].is_empty() && !self.passed_on[from] {
            if self.fault == Fault::ShowsFinAsAReset {
                return Err(ErrorKind::ConnectionReset);
            }
            self.passed_on[from] = true;
            self.sockets[to].shutdown(Shutdown::Write).map_err(|e| e.kind())?;
        }
        Ok(())
    }

    /// A piece as the fault leaves it: spoiled once in a connection, after its first few bytes.
    fn spoil(&mut self, piece: &[u8]) -> Vec<u8> {
        let first = self.moved == 0;
        self.moved += piece.len() as u64;
        let mut piece = piece.to_vec();
        match self.fault {
            Fault::LosesAByte if first => drop(piece.pop()),
            Fault::DoublesAPiece if first => piece.extend_from_within(..),
            Fault::SwapsTwoBytes if first && piece.len() > 1 => piece.swap(0, 1),
            Fault::TruncatesBeforeFin if self.peer_has_closed() => piece.truncate(piece.len() / 2),
            Fault::DropsWhatIsQueuedAtFin if self.peer_has_closed() => piece.clear(),
            _ => {}
        }
        piece
    }

    fn peer_has_closed(&self) -> bool {
        let mut byte = [0];
        self.sockets
            .iter()
            .any(|socket| matches!(socket.peek(&mut byte), Ok(0)))
    }

    fn reset(&self) {
        for socket in &self.sockets {
            SockRef::from(socket)
                .set_linger(Some(Duration::ZERO))
                .expect("SO_LINGER");
        }
    }
}

fn would_block(result: std::io::Result<usize>) -> Result<Option<usize>, ErrorKind> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e.kind()),
    }
}
