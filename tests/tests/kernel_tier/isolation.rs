//! A receiver that hardly runs must not hold up its sender, which puts bytes into the receiver's queue itself.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_tests::{Host, Process, Throttle, wait};

use crate::place::{IMPATIENT, PORT, Place};

/// Of one processor, for the receiver.
const PERCENT: u64 = 5;
const MEASURED_FOR: Duration = Duration::from_secs(4);
const MESSAGE: usize = 4096;
/// A sender that waited for a throttled receiver would wait for the rest of its period (95 of 100 ms).
const LONGEST: Duration = Duration::from_millis(50);

#[test]
fn a_throttled_receiver_does_not_hold_up_its_sender() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let [sender, receiver] = ["nowhere/sender", "nowhere/receiver"].map(|name| place.node.pod(name));
    let Some(direct) = longest_send(&place, &sender, &receiver, receiver.at(PORT)) else {
        eprintln!("SKIP: this machine has no CPU controller to throttle a program with");
        return;
    };
    let kernel = longest_send(&place, &place.client, &place.server, place.through(PORT)).expect("as before");
    println!(
        "longest of the sends to a receiver with {PERCENT} % of a processor: direct {direct:?}, in the kernel {kernel:?}"
    );
    let bound = LONGEST.max(2 * direct.longest);
    assert!(kernel.longest < bound, "in the kernel {kernel:?}, direct {direct:?}");
}

/// How long the sends of an event loop took.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
struct Sends {
    count: usize,
    bytes: usize,
    median: Duration,
    of_1000: Duration,
    longest: Duration,
}

fn longest_send(place: &Place, sender: &Host, receiver: &Host, to: SocketAddr) -> Option<Sends> {
    let mut sink = Process::command(env!("CARGO_BIN_EXE_application"));
    sink.args(["sink", &receiver.at(PORT).to_string()]);
    let mut sink = Process::start(place.node.world(), receiver, "sink", sink);
    drop(sink.wait_for_port(receiver, receiver.at(PORT)));
    let mut stream = sender.connect_non_blocking(to).expect("begin to connect");
    // Until it is in the kernel, if it gets there.
    for _ in 0..20 {
        poll_out(&stream);
        stream.write_all(&[0; 100]).expect("write");
        thread::sleep(Duration::from_millis(10));
    }
    let before = place.proxy.connections();
    let is_captured = before
        .iter()
        .any(|c| c["src_addr"] == stream.local_addr().expect("open").to_string());
    assert!(
        !is_captured || before.iter().all(|c| c["tier"] == "kernel"),
        "{before:?}"
    );
    let _throttle = Throttle::new(&sink, PERCENT)?;
    let (mut times, mut bytes, end) = (Vec::new(), 0, Instant::now() + MEASURED_FOR);
    while Instant::now() < end {
        poll_out(&stream);
        let since = Instant::now();
        match stream.write(&[1; MESSAGE]) {
            Ok(n) => bytes += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => panic!("write: {e}"),
        }
        times.push(since.elapsed());
    }
    times.sort_unstable();
    assert!(times.len() > 100 && bytes > 0, "{} sends of {bytes} bytes", times.len());
    Some(Sends {
        count: times.len(),
        bytes,
        median: times[times.len() / 2],
        of_1000: times[times.len() - 1 - times.len() / 1000],
        longest: *times.last().expect("some"),
    })
}

fn poll_out(stream: &TcpStream) {
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(wait::soon()).expect("fits");
    assert!(
        poll(&mut descriptors, timeout).expect("poll") > 0,
        "the receiver reads, if slowly"
    );
}
