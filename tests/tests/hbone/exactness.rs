//! Conversations by tunnel, judged as on a wire: every byte, half-closes, resets, killed peers, stalls.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use underpass_tests::conversation::{ChildPeer, Ending, Plan, Script, Seen, judge, talk};
use underpass_tests::{Host, wait};

use crate::place::Place;

/// Conversations at a time, each with a port of its own; they share the tunnel's connections.
const LANES: u16 = 4;
/// Conversations of a lane.
const EACH: u64 = 30;
/// Of a receive buffer (the kernel doubles it).
const NARROW: usize = 16 * 1024;

#[test]
fn every_byte_and_every_end_is_as_on_a_wire() {
    let Some(place) = Place::start(|hosts| hosts.mesh("")) else {
        return;
    };
    let first = std::env::var("UNDERPASS_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("a number"));
    thread::scope(|scope| {
        for number in 0..LANES {
            let place = &place;
            scope.spawn(move || {
                let lane = Lane::new(place, number);
                (0..EACH).for_each(|turn| lane.hold(first + u64::from(number) * EACH + turn));
            });
        }
    });
    let metrics = place.near.proxy.metrics();
    let opened = metrics.sum("istio_tcp_connections_opened_total", &[("reporter", "source")]);
    assert_eq!(opened, u64::from(LANES) * EACH, "each was counted, once");
}

struct Lane<'a> {
    place: &'a Place,
    client: Host,
    listener: TcpListener,
    to: SocketAddr,
}

impl<'a> Lane<'a> {
    fn new(place: &'a Place, number: u16) -> Self {
        let narrow = |host: &Host| match number % 2 {
            0 => host.clone(),
            _ => host.with_receive_buffer(NARROW),
        };
        let port = 9000 + number;
        let listener = narrow(&place.server).listen(port);
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        Self {
            place,
            client: narrow(&place.client),
            listener,
            to: place.server.at(port),
        }
    }

    fn hold(&self, seed: u64) {
        let script = Script::new(seed);
        let client = self.client.connect_unbound(self.to).expect("connect");
        let source = client.local_addr().expect("bound");
        let (server, _) = wait::some(wait::SOON, "the server is connected to", || self.listener.accept().ok());
        server.set_nonblocking(false).expect("blocking");
        let (client, server) = thread::scope(|scope| {
            let serving = scope.spawn(|| play(server, &script, &script.server, "server"));
            let client = play(client, &script, &script.client, "client");
            (client, serving.join().expect("the server's side"))
        });
        let line = self.place.near.proxy.access_line_to(source, self.to);
        let context = || {
            format!(
                "UNDERPASS_SEED={seed}: {}\n{script:#?}\n{client:#?}\n{server:#?}",
                line.text
            )
        };
        let finish = judge(&script, &client, &server).unwrap_or_else(|why| panic!("{why}\n{}", context()));
        line.assert_ends(finish);
        for (key, writer, reader) in [("sent_bytes", &client, &server), ("received_bytes", &server, &client)] {
            let possible = reader.read.least..=writer.written.most;
            assert!(
                possible.contains(&line.number(key)),
                "{key} should be in {possible:?}: {}",
                context()
            );
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
