//! Conversations of event loops, one after another on each lane, judged as on a wire.
//!
//! Both sides are non-blocking from their first moment (SOCK_NONBLOCK at connect and accept), as the kernel tier asks of an application.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{SocketFlags, accept_with};
use underpass_tests::conversation::{ChildPeer, Ending, Genre, Plan, Script, Seen, judge, judge_cut, talk};
use underpass_tests::{AccessLine, Host, Tiers, wait};

use crate::place::Place;

/// Of a receive buffer (the kernel doubles it).
const NARROW: usize = 16 * 1024;
/// The end that a connection has which policy has cut.
const REVOKED: &str = "policy_revoked";
/// The end of one that policy did not let begin.
const DENIED: &str = "policy_denied";

/// Holds conversations one after the other on a port of its own, so that what is accepted belongs to what was just opened.
pub(crate) struct Lane<'a> {
    place: &'a Place,
    client: Host,
    listener: TcpListener,
    to: SocketAddr,
    /// Whether policy may cut its connections.
    is_doomed: bool,
    tally: &'a Mutex<Tally>,
}

/// What came of all conversations so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Those that nobody cut.
    pub(crate) whole: u64,
    /// Those that policy cut, and those that it did not let begin.
    pub(crate) cut: u64,
    pub(crate) denied: u64,
    /// By the access log.
    pub(crate) bytes: Tiers,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(place: &'a Place, port: u16, is_doomed: bool, tally: &'a Mutex<Tally>) -> Self {
        // With little room at the receiver everything comes in parts.
        let narrow = |host: &Host| {
            if port % 2 == 1 {
                host.with_receive_buffer(NARROW)
            } else {
                host.clone()
            }
        };
        let listener = narrow(&place.server).listen(port);
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        Self {
            place,
            client: narrow(&place.client),
            listener,
            to: place.through(port),
            is_doomed,
            tally,
        }
    }

    /// Holds the conversation of `seed`, and judges what both sides saw and what was logged.
    pub(crate) fn hold(&self, seed: u64) {
        let script = Script::of(Genre::Long, seed);
        let (source, server, client) = match self.open() {
            Opened::Both { source, client, server } => (source, server, client),
            Opened::Denied(source) => return self.note_denied(source),
        };
        let (client, server) = thread::scope(|scope| {
            let serving = scope.spawn(|| play(server, &script, &script.server, "server"));
            let client = play(client, &script, &script.client, "client");
            (client, serving.join().expect("the server's side"))
        });
        let line = self.line(source);
        let context = || {
            format!(
                "UNDERPASS_SEED={seed}: {}\n{script:#?}\n{client:#?}\n{server:#?}",
                line.text
            )
        };
        let is_cut = self.is_doomed && line.field("reason") == REVOKED;
        if is_cut {
            judge_cut(&script, &client, &server).unwrap_or_else(|why| panic!("{why}\n{}", context()));
        } else {
            let finish = judge(&script, &client, &server).unwrap_or_else(|why| panic!("{why}\n{}", context()));
            line.assert_ends(finish);
        }
        let bytes = line.tiers();
        for (key, logged, writer, reader) in [
            ("sent", bytes.sent, &client, &server),
            ("received", bytes.received, &server, &client),
        ] {
            // No byte that its reader has is missing, and none is counted that its writer didn't write.
            let possible = reader.read.least..=writer.written.most;
            assert!(
                possible.contains(&logged.total),
                "{key} should be in {possible:?}: {}",
                context()
            );
        }
        let mut tally = self.tally.lock().expect("no holder panics");
        tally.bytes += bytes;
        if is_cut {
            tally.cut += 1;
        } else {
            tally.whole += 1;
        }
    }

    fn line(&self, source: SocketAddr) -> AccessLine {
        let port = self.to.port();
        self.place.proxy.access_line_to(source, self.place.server.at(port))
    }

    fn note_denied(&self, source: SocketAddr) {
        // When it is logged, both its ends have been closed; if it got as far as the server, it lies in the queue.
        let line = self.line(source);
        let reason = line.field("reason");
        assert!([REVOKED, DENIED].contains(&reason), "{}", line.text);
        while self.accept().is_some() {}
        let mut tally = self.tally.lock().expect("no holder panics");
        tally.denied += 1;
    }

    fn open(&self) -> Opened {
        let client = self.client.connect_non_blocking(self.to).expect("begin to connect");
        let source = client.local_addr().expect("bound");
        wait::some(wait::SOON, "the server is connected to, or the client reset", || {
            if let Some(server) = self.accept() {
                return Some(Opened::Both {
                    source,
                    client: client.try_clone().expect("dup"),
                    server,
                });
            }
            is_over(&client).then(|| {
                assert!(self.is_doomed, "{source} to {}: nobody denies it", self.to);
                Opened::Denied(source)
            })
        })
    }

    fn accept(&self) -> Option<TcpStream> {
        let accepted = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok()?;
        let stream = TcpStream::from(accepted);
        // Of a connection that was cut before it got here nothing can be said.
        (!is_over(&stream)).then_some(stream)
    }
}

enum Opened {
    Both {
        source: SocketAddr,
        client: TcpStream,
        server: TcpStream,
    },
    Denied(SocketAddr),
}

/// Whether a connection, or the attempt at one, has failed. Takes nothing from it.
fn is_over(stream: &TcpStream) -> bool {
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut descriptors, PollTimeout::ZERO).expect("poll");
    descriptors[0]
        .revents()
        .is_some_and(|shown| shown.contains(PollFlags::POLLERR))
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
