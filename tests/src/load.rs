//! Connections with a round trip, one or a constant load of them, and what came of it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::client::is_reset;
use crate::server::Server;
use crate::wait;
use crate::world::Host;

/// Connects as a program does, reads the server's greeting and has a message echoed.
pub fn ask(host: &Host, to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = host.connect_unbound(to)?;
    round_trip(&mut stream)?;
    Ok(stream)
}

/// The server's greeting and an echo on a connection that is new.
pub fn round_trip(stream: &mut TcpStream) -> io::Result<SocketAddr> {
    let name = Server::greeting(stream)?;
    Server::echo(stream, b"hello")?;
    Ok(name)
}

/// Whether an error is a reset or a refused connect.
pub fn is_refusal(error: &io::Error) -> bool {
    is_reset(error) || error.kind() == io::ErrorKind::ConnectionRefused
}

/// Where connections come from and go to, one after another.
pub type Lane<'a> = (&'a Host, SocketAddr);

/// What has come of the connections so far.
#[derive(Default)]
pub struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    /// Connections with a whole round trip.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Connections that were refused or reset.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// Panics if any connection has not had its round trip.
    #[track_caller]
    pub fn assert_none_lost(&self) {
        let failures = self.failures.lock().expect("no holder panics");
        let (count, first) = (failures.len(), failures.first());
        assert_eq!(
            count,
            0,
            "of {} connections these failed, first {first:?}",
            self.answered()
        );
    }

    /// Waits for so many more round trips.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let before = self.answered();
        wait::eventually(wait::SOON, "the load goes on", || self.answered() >= before + more);
    }

    fn add(&self, from: &Host, to: SocketAddr, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.answered.fetch_add(1, Ordering::SeqCst),
            Err(error) => {
                let failure = format!("{} to {to}: {error}", from.ip());
                self.failures.lock().expect("no holder panics").push(failure);
                self.refused.fetch_add(u64::from(is_refusal(&error)), Ordering::SeqCst)
            }
        };
    }
}

/// Runs `work` under load: on each lane one connection after another. Afterwards none is under way.
pub fn under_load(lanes: &[Lane<'_>], work: impl FnOnce(&[Tally])) -> Vec<Tally> {
    let stop = wait::Stop::default();
    let tallies: Vec<Tally> = lanes.iter().map(|_| Tally::default()).collect();
    thread::scope(|scope| {
        let _stops_the_others = stop.when_dropped();
        for ((host, to), tally) in lanes.iter().zip(&tallies) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.is_due() {
                    tally.add(host, *to, ask(host, *to).map(drop));
                }
            });
        }
        work(&tallies);
    });
    tallies
}
