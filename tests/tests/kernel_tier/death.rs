//! Proxy and agent die at any moment: nothing passes any more that nobody has judged, and nothing that was cut short looks complete.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use underpass_tests::conversation::{Plan, Seen, talk};
use underpass_tests::{is_reset, wait};

use crate::pair::Pair;
use crate::place::{IMPATIENT, PORT, Place, setting};

/// How often each of them dies.
const DEFAULT_DEATHS: u64 = 6;
/// Connections that are open then.
const CONNECTIONS: usize = 6;
/// When so much of each of them has gone past the proxy, they talk.
const A_TALK: u64 = 20_000;
/// They die within so much of the moment at which all do.
const WITHIN: Duration = Duration::from_millis(40);

#[test]
fn a_killed_proxy_takes_its_connections_with_it_at_once() {
    let Some(mut place) = Place::captured(IMPATIENT) else {
        return;
    };
    for round in 0..deaths() {
        place.assert_die(round, |place| place.proxy.process().kill());
        place.restart_proxy();
    }
}

#[test]
fn a_killed_proxy_takes_the_connections_of_plain_listeners_with_it_at_once() {
    let Some(mut place) = Place::on_loopback(IMPATIENT) else {
        return;
    };
    for round in 0..deaths() {
        place.assert_die(round, |place| place.proxy.process().kill());
        place.restart_proxy();
    }
}

#[test]
fn connections_die_with_proxy_and_agent_killed_in_either_order() {
    let Some(mut place) = Place::captured(IMPATIENT) else {
        return;
    };
    for round in 0..deaths() {
        place.assert_die(round, |place| {
            if round.is_multiple_of(2) {
                place.agent.process().kill();
                place.proxy.process().kill();
            } else {
                place.proxy.process().kill();
                place.agent.process().kill();
            }
        });
        place.agent = place.node.start_agent();
        place.restart_proxy();
    }
}

/// Without an agent what is in the kernel stays there; the next one moves more.
#[test]
fn connections_outlive_the_agent_in_the_kernel() {
    let Some(mut place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    for _ in 0..deaths() {
        let pairs: Vec<Pair> = (0..CONNECTIONS).map(|_| place.open(&listener)).collect();
        pairs.iter().for_each(|pair| place.settle_in_the_kernel(pair));
        let stop = wait::Stop::default();
        thread::scope(|scope| {
            let _stops_the_others = stop.when_dropped();
            let talks: Vec<_> = pairs
                .iter()
                .map(|pair| scope.spawn(|| pair.exchange_until(&stop)))
                .collect();
            place.agent.process().kill();
            let before = place.kernel_bytes(&pairs);
            wait::eventually(wait::SOON, "all go on in the kernel", || {
                let now = place.kernel_bytes(&pairs);
                before.iter().zip(now).all(|(before, now)| now > before + 100_000)
            });
            place.agent = place.node.start_agent();
            drop(stop.when_dropped());
            talks.into_iter().for_each(|talk| talk.join().expect("they go on"));
        });
        for pair in pairs {
            place.end(pair).assert_reason("completed", "-");
        }
    }
}

fn deaths() -> u64 {
    setting("UNDERPASS_CYCLES").map_or(DEFAULT_DEATHS, |cycles| cycles / 100)
}

impl Place {
    /// Connections talk without an end in the kernel until `die` is done. Then both ends of each have been reset, and nothing more arrives.
    fn assert_die(&mut self, round: u64, die: impl FnOnce(&mut Self)) {
        let listener = self.server.listen(PORT);
        let pairs: Vec<Pair> = (0..CONNECTIONS).map(|_| self.open(&listener)).collect();
        pairs.iter().for_each(|pair| self.settle_in_the_kernel(pair));
        let ends: Vec<[Seen; 2]> = thread::scope(|scope| {
            let _ends_a_test_that_fails = CutWhenDropped(&pairs);
            let talks: Vec<_> = pairs
                .iter()
                .enumerate()
                .map(|(number, pair)| {
                    let plans = Plan::endless(round << 8 | number as u64);
                    scope.spawn(move || talk_both(pair, &plans))
                })
                .collect();
            wait::eventually(wait::SOON, "all talk", || {
                self.kernel_bytes(&pairs).into_iter().all(|bytes| bytes > A_TALK)
            });
            thread::sleep(WITHIN.mul_f64(fastrand::f64()));
            die(self);
            talks.into_iter().map(|talk| talk.join().expect("both sides")).collect()
        });
        for (pair, ends) in pairs.iter().zip(&ends) {
            let [client, server] = ends;
            for (name, seen, peer, stream) in [
                ("client", client, server, &pair.client),
                ("server", server, client, &pair.server),
            ] {
                assert!(seen.faults.is_empty(), "{name}: {seen:?}");
                assert!(seen.reset && !seen.eof, "{name}: cut short, but no reset: {seen:?}");
                assert!(seen.read.least <= peer.written.most, "{name}: {ends:?}");
                assert_nothing_follows(name, stream);
            }
        }
    }

    fn restart_proxy(&mut self) {
        self.proxy = self.node.start_proxy(&self.config(IMPATIENT));
    }
}

/// Ends all connections, so that nobody goes on talking when a test has failed.
struct CutWhenDropped<'a>(&'a [Pair]);

impl Drop for CutWhenDropped<'_> {
    fn drop(&mut self) {
        for stream in self.0.iter().flat_map(|pair| [&pair.client, &pair.server]) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Each side in a thread of its own, until both have seen the end.
fn talk_both(pair: &Pair, [client, server]: &[Plan; 2]) -> [Seen; 2] {
    let dup = |stream: &TcpStream| stream.try_clone().expect("dup");
    thread::scope(|scope| {
        let serving = scope.spawn(|| talk(dup(&pair.server), server));
        let client = talk(dup(&pair.client), client);
        [client, serving.join().expect("the server's side")]
    })
}

/// What the receiver reads after its end is nothing, however often it asks.
fn assert_nothing_follows(name: &str, mut stream: &TcpStream) {
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Ok(_) => panic!("{name}: bytes after the end"),
        Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("{name}: not at its end"),
        Err(e) => assert!(is_reset(&e), "{name}: {e}"),
    }
}
