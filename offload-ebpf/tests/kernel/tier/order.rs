//! Bytes arrive as they were sent, whichever way they went.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::Variant;

use super::relay::{Account, Relay};
use super::world::{Flow, World, assert_nothing, bypassed, read, wait, write};
use crate::objects::{open_pin, write_array};
use crate::wait;

/// A stream whose every byte depends on its place (SplitMix64).
fn fill(seed: u64, from: u64, buffer: &mut [u8]) {
    let word = |number: u64| {
        let mut word = (seed ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ word >> 27).to_le_bytes()
    };
    let mut place = from;
    let mut rest = buffer;
    while !rest.is_empty() {
        let bytes = &word(place / 8)[(place % 8) as usize..];
        let len = bytes.len().min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&bytes[..len]);
        (place, rest) = (place + len as u64, later);
    }
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A stream under way.
struct Stream {
    seed: u64,
    bytes: u64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Stream {
    fn new(seed: u64, bytes: u64) -> Self {
        let [sent, received] = [0, 0].map(AtomicU64::new);
        Self {
            seed,
            bytes,
            sent,
            received,
        }
    }

    fn await_sent(&self, bytes: u64) {
        soon(|| self.sent.load(Ordering::Relaxed) >= bytes);
    }

    fn await_received(&self) {
        soon(|| self.received.load(Ordering::Relaxed) == self.sent.load(Ordering::Relaxed));
    }
}

/// As `eventually`, but looks more often.
fn soon(condition: impl Fn() -> bool) {
    let end = Instant::now() + wait::soon();
    while !condition() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Writes a stream in pieces of random sizes, and ends it. Now and then it waits until all has arrived, as one who asks waits for the
/// answer: so there are moments when nothing is on the way, however busy the machine is.
fn produce(mut to: &TcpStream, stream: &Stream) {
    let &Stream {
        seed, bytes, ref sent, ..
    } = stream;
    let (mut dice, mut buffer, mut place) = (Dice(seed), vec![0; 100_000], 0);
    while place < bytes {
        let most = if dice.below(4) == 0 { 100_000 } else { 3000 };
        let len = (1 + dice.below(most)).min(bytes - place) as usize;
        fill(seed, place, &mut buffer[..len]);
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(len) => {
                    rest = &rest[len..];
                    place += len as u64;
                    sent.store(place, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait(to, libc::POLLOUT),
                Err(error) => panic!("after {place} of {bytes} bytes: {error}"),
            }
        }
        if dice.below(12) == 0 {
            stream.await_received();
        }
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Reads a stream to its end, now and then with a pause, and compares it.
fn consume(mut from: &TcpStream, stream: &Stream) {
    let &Stream {
        seed,
        bytes,
        ref received,
        ..
    } = stream;
    let (mut dice, mut buffer, mut expected, mut place) = (Dice(seed + 1), vec![0; 100_000], vec![0; 100_000], 0);
    let end = Instant::now() + 3 * wait::soon();
    loop {
        let most = 1 + dice.below(100_000) as usize;
        match from.read(&mut buffer[..most]) {
            Ok(0) => return assert_eq!(place, bytes, "the end came too early"),
            Ok(len) => {
                fill(seed, place, &mut expected[..len]);
                assert!(buffer[..len] == expected[..len], "other bytes from {place} on");
                place += len as u64;
                received.store(place, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(from, libc::POLLIN),
            Err(error) => panic!("after {place} of {bytes} bytes: {error}"),
        }
        assert!(Instant::now() < end, "only {place} of {bytes} bytes");
        if dice.below(300) == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Runs a flow full duplex, with so many bytes each way, while `steer` has its way with the relay.
fn run(world: &World, variant: Variant, bytes: u64, steer: impl FnOnce(&Relay, &Stream)) -> Account {
    let Flow { a, pa, h, b } = world.flow();
    let relay = Relay::start(pa, h, world.memory.clone(), world.joiner(variant));
    let (out, back) = (Stream::new(3, bytes), Stream::new(5, bytes));
    std::thread::scope(|scope| {
        scope.spawn(|| produce(&a, &out));
        scope.spawn(|| consume(&b, &out));
        scope.spawn(|| produce(&b, &back));
        scope.spawn(|| consume(&a, &back));
        steer(&relay, &out);
    });
    let account = relay.end();
    for direction in 0..2 {
        let passed = account.tallies[direction].bypassed_bytes;
        assert_eq!(account.relayed[direction] + passed, bytes, "{account:?}");
    }
    account
}

/// Of both directions together so much went each way.
fn assert_share(account: &Account, bytes: u64, relayed: f64, passed: f64) {
    let share = account.relayed.iter().sum::<u64>() as f64 / (2 * bytes) as f64;
    assert!(
        share >= relayed && 1.0 - share >= passed,
        "{share:.3} relayed: {account:?}"
    );
}

const STREAM: u64 = 16_000_000;

#[test]
fn a_flow_joined_in_mid_stream_arrives_in_order() {
    let Some(world) = World::new() else { return };
    for variant in world.tier.variants() {
        let account = run(&world, *variant, STREAM, |relay, stream| {
            stream.await_sent(STREAM / 8);
            relay.join();
        });
        assert_share(&account, STREAM, 0.1, 0.3);
    }
}

#[test]
fn a_flow_taken_back_and_given_again_many_times_arrives_in_order() {
    let Some(world) = World::new() else { return };
    for variant in world.tier.variants() {
        let account = run(&world, *variant, STREAM, |relay, stream| {
            relay.join();
            let (mut dice, mut changes) = (Dice(11), 0);
            loop {
                let is_armed = changes % 2 == 1;
                relay.set_armed(is_armed);
                let step = if is_armed { STREAM / 30 } else { STREAM / 60 };
                let goal = stream.sent.load(Ordering::Relaxed) + step / 2 + dice.below(step);
                if goal >= STREAM {
                    break;
                }
                stream.await_sent(goal);
                changes += 1;
            }
            assert!(changes > 20, "{changes} changes");
        });
        assert_share(&account, STREAM, 0.25, 0.25);
    }
}

#[test]
fn a_message_stays_behind_those_that_the_proxy_still_has() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    joined.disarm(Out);
    write(&flow.a, b"by TCP ");
    joined.arm(Out);
    write(&flow.a, b"behind ");
    // The proxy has both in hand, and has handed on one of them.
    assert_eq!(read(&flow.pa, 14), b"by TCP behind ");
    write(&flow.h, b"by TCP ");
    joined.handed_on(Out, 7);
    write(&flow.a, b"still ");
    assert_eq!(read(&flow.pa, 6), b"still ");
    write(&flow.h, b"behind still ");
    joined.handed_on(Out, 13);
    write(&flow.a, b"past");
    assert_eq!(read(&flow.b, 24), b"by TCP behind still past");
    let tally = joined.tally(Out);
    assert_eq!((tally.bypassed_bytes, tally.behind), (4, 2));
}

#[test]
fn what_the_proxy_sends_is_redirected_whatever_the_state_of_the_flow() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    drop(joined);
    // Of a plain socket the kernel would say 0 here: nothing that is redirected is counted by TCP.
    write(&flow.h, b"unread");
    assert_eq!(super::world::tcp_bytes_received(&flow.b), 0);
    assert_eq!(read(&flow.b, 6), b"unread");
}

#[test]
fn an_unarmed_flow_passes_nothing_by() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.memory.flow(world.join(&flow).unwrap());
    write(&flow.a, b"first");
    assert_eq!(read(&flow.pa, 5), b"first");
    assert_nothing(&flow.b);
    assert_eq!(joined.tally(Out), bypassed(0, 0));
    joined.arm(In);
    write(&flow.b, b"past");
    assert_eq!(read(&flow.a, 4), b"past");
    write(&flow.a, b"second");
    assert_eq!(read(&flow.pa, 6), b"second");
    drop(joined);
    write(&flow.b, b"back");
    assert_eq!(read(&flow.h, 4), b"back");
}

#[test]
fn a_place_that_another_flow_has_now_means_nothing_to_the_flow_that_had_it() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"past");
    assert_eq!(read(&flow.b, 4), b"past");
    let ticket = joined.ticket();
    // As the next flow's join and its proxy would write it: armed, and with a count that fits by chance.
    let mut entry = [0; 256];
    for direction in [0, 128] {
        entry[direction + 8] = 1;
        entry[direction + 12..direction + 16].copy_from_slice(&(ticket.generation + 1).to_ne_bytes());
    }
    let flows = open_pin(&world.site.layout.pin_dir.join("maps/FLOWS")).unwrap();
    write_array(&flows, ticket.index, &entry);
    assert!(joined.is_armed(Out));
    write(&flow.a, b"by TCP");
    assert_eq!(read(&flow.pa, 6), b"by TCP");
    // Nor does its end end the other.
    drop(flow);
    wait::eventually("its sockets are gone", || {
        crate::objects::keys(&open_pin(&world.site.layout.pin_dir.join("maps/SOCKS")).unwrap()).is_empty()
    });
    assert_eq!(joined.tally(Out), bypassed(0, 0));
    assert!(joined.is_armed(Out));
}
