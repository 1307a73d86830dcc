//! A reader that sleeps: what the kernel holds for it is bounded, its writer sleeps too, and nobody works.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_tests::conversation::{Pattern, Speech};
use underpass_tests::wait;

use crate::pair::Pair;
use crate::place::{IMPATIENT, PORT, Place, setting};

/// A writer that could write nothing for so long sleeps.
const ASLEEP: Duration = Duration::from_millis(300);
/// What TCP itself may hold between an application and the proxy, beside the message that waits: the window of the proxy's socket, which has
/// room for two of the largest segments (of 64 KiB over loopback, where the proxy is reached), and what was being made of the next ones.
const HELD_BY_TCP: u64 = 256 * 1024;
/// A writer that gets so far would never be stopped.
const FAR_TOO_MUCH: u64 = 64 << 20;
const SEED: u64 = 11;
/// Stuck connections whose cost is measured; 1 000 in the soak.
const DEFAULT_STUCK: u64 = 200;
/// Issue 5: of one core, for 1 000 of them. Fewer may cost as much: processor time is told in ticks.
const MAY_COST: f64 = 0.01;
const WATCHED_FOR: Duration = Duration::from_secs(5);

#[test]
fn a_sleeping_reader_makes_its_writer_sleep_at_the_limit() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    for limit in [64 * 1024, 1024 * 1024] {
        place
            .proxy
            .apply(&place.config(&format!("{IMPATIENT}, limit: {limit}")));
        for message in [1000, 64 * 1024, 2 * 1024 * 1024] {
            for direction in [0, 1] {
                let pair = place.open(&listener);
                place.settle_in_the_kernel(&pair);
                let (writer, reader) = match direction {
                    0 => (&pair.client, &pair.server),
                    _ => (&pair.server, &pair.client),
                };
                let written = write_until_asleep(writer, message);
                let bound = limit + message as u64 + HELD_BY_TCP;
                println!("limit {limit}, messages of {message}: {written} written");
                assert!(
                    written <= bound,
                    "limit {limit}, messages of {message}: {written} written, {bound} at most"
                );
                read_all(reader, written);
                let line = place.end(pair);
                assert!(line.tiers().share() > 0.0, "it was in the kernel: {}", line.text);
            }
        }
    }
}

#[test]
fn stuck_connections_cost_nothing() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    let stuck = setting("UNDERPASS_STUCK").unwrap_or(DEFAULT_STUCK);
    place.proxy.apply(&place.config(&format!("{IMPATIENT}, limit: 64KiB")));
    let mut pairs: Vec<(Pair, u64)> = (0..stuck).map(|_| (place.open(&listener), 0)).collect();
    for (pair, written) in &mut pairs {
        place.settle_in_the_kernel(pair);
        // Whether it sleeps is looked at when all are stuck.
        write_what_is_taken(&pair.client, 32 * 1024, written);
    }
    wait::eventually(10 * wait::SOON, "all writers sleep", || {
        let before: u64 = pairs.iter().map(|(_, written)| written).sum();
        thread::sleep(ASLEEP);
        for (pair, written) in &mut pairs {
            write_what_is_taken(&pair.client, 32 * 1024, written);
        }
        before == pairs.iter().map(|(_, written)| written).sum::<u64>()
    });
    // Until the proxy looks no more often than it does for ever.
    thread::sleep(Duration::from_secs(1));
    let before = place.proxy.processor_time();
    thread::sleep(WATCHED_FOR);
    let worked = place.proxy.processor_time() - before;
    let cost = worked.as_secs_f64() / WATCHED_FOR.as_secs_f64();
    println!("{stuck} stuck connections: {:.2} % of a core", 100.0 * cost);
    let may_work = wait::patient(WATCHED_FOR.mul_f64(MAY_COST));
    assert!(worked <= may_work, "{stuck} stuck connections cost {cost} of a core");
    // All at once: each is seen to have read only when it is looked at next.
    thread::scope(|scope| {
        for (pair, written) in &pairs {
            scope.spawn(|| read_all(&pair.server, *written));
        }
    });
    for (pair, _) in pairs {
        place.end(pair);
    }
}

/// What the kernel holds for a connection while it is in the kernel tier and nothing is on the way, beside its four sockets.
#[test]
#[ignore = "counts the memory of the whole kernel, so that nothing else may run: make soak"]
fn a_joined_connection_costs_the_kernel_some_kilobytes() {
    let Some(place) = Place::captured("enabled: false") else {
        return;
    };
    let listener = place.server.listen(PORT);
    let pairs: Vec<Pair> = (0..COUNTED).map(|_| place.open(&listener)).collect();
    pairs
        .iter()
        .for_each(|pair| pair.exchange(b"relayed").expect("an exchange"));
    let relayed = slab_bytes();
    place.proxy.apply(&place.config(IMPATIENT));
    pairs.iter().for_each(|pair| place.settle_in_the_kernel(pair));
    let each = (slab_bytes() - relayed) / COUNTED as f64;
    println!("a joined connection: {each:.0} bytes of slab");
    assert!(
        each > 1000.0,
        "{each} bytes of slab: not even what the kernel keeps of two sockets in a map"
    );
    assert!(each < MAY_HOLD, "{each} bytes of slab for each connection");
    for pair in pairs {
        place.end(pair);
    }
}

/// Connections whose memory is counted: so many that others' is small beside it.
const COUNTED: usize = 400;
/// Of slab, for a connection: two `struct sk_psock`, four storages, two entries of a map, and room for what else the kernel is doing meanwhile.
const MAY_HOLD: f64 = 32.0 * 1024.0;

/// Bytes of all objects in use (slabinfo(5)).
fn slab_bytes() -> f64 {
    let text = fs::read_to_string("/proc/slabinfo").expect("/proc/slabinfo");
    let bytes = text.lines().skip(2).map(|line| {
        let mut numbers = line
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse::<f64>().expect("a number"));
        let (active, _all, size) = (numbers.next(), numbers.next(), numbers.next());
        active.expect("active objects") * size.expect("their size")
    });
    bytes.sum()
}

/// Writes messages as an event loop does, when poll() says so, until it has not for [`ASLEEP`].
fn write_until_asleep(stream: &TcpStream, message: usize) -> u64 {
    let mut written = 0;
    let patience = PollTimeout::try_from(ASLEEP).expect("fits");
    while poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], patience).expect("poll") > 0 {
        write_what_is_taken(stream, message, &mut written);
    }
    written
}

/// Without waiting.
fn write_what_is_taken(mut stream: &TcpStream, message: usize, written: &mut u64) {
    let mut bytes = vec![0; message];
    loop {
        Speech::new(SEED).fill(0, *written, &mut bytes);
        match stream.write(&bytes) {
            Ok(n) => *written += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => panic!("write: {e}"),
        }
        assert!(*written < FAR_TOO_MUCH, "the writer is not stopped");
    }
}

/// Everything is there, in order.
fn read_all(mut stream: &TcpStream, bytes: u64) {
    let (mut buffer, mut position) = (vec![0; 64 * 1024], 0);
    // A segment that found no room comes again by a timer, which has backed off for as long as nobody read.
    let end = Instant::now() + 10 * wait::soon();
    while position < bytes {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("EOF after {position} of {bytes}"),
            Ok(n) => {
                assert_eq!(Pattern::new(SEED).mismatch(position, &buffer[..n]), None);
                position += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "{position} of {bytes} bytes came");
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("read: {e}"),
        }
    }
}
