//! Readers by splice(2): they are kept out, and one that begins later is told of. Where the kernel or its security modules forbid tracing programs
//! there is nothing to test but that the tier says so: that is no failure, also where nothing else may be skipped.

use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, pipe, splice};
use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{Side, note};

use super::world::{World, read, write};
use crate::wait::eventually;

struct Splicer {
    from: OwnedFd,
    to: OwnedFd,
}

impl Splicer {
    fn new() -> Self {
        let (from, to) = pipe().unwrap();
        Self { from, to }
    }

    /// What splice(2) takes from the socket now.
    fn take(&self, socket: &TcpStream) -> Result<Vec<u8>, Errno> {
        let taken = splice(socket, None, &self.to, None, 4096, SpliceFlags::NONBLOCK)?;
        let mut bytes = vec![0; taken];
        rustix::io::read(&self.from, &mut bytes)?;
        Ok(bytes)
    }
}

/// Whether they are noticed here; otherwise says why not.
fn are_noticed(world: &World) -> bool {
    let blind = world.tier.is_blind_to_splicing();
    if let Some(why) = blind {
        eprintln!(
            "SKIP {}: this kernel forbids it: {why}",
            std::thread::current().name().unwrap_or("a test")
        );
    }
    blind.is_none()
}

#[test]
fn who_reads_by_splice_is_not_joined() {
    let Some(world) = World::untested() else { return };
    if !are_noticed(&world) {
        return;
    }
    let splicer = Splicer::new();
    for side in [Side::Client, Side::Server] {
        let flow = world.flow();
        let (reader, writer) = match side {
            Side::Client => (&flow.a, &flow.pa),
            Side::Server => (&flow.b, &flow.h),
        };
        write(writer, b"by splice");
        eventually("it arrives", || splicer.take(reader) == Ok(b"by splice".to_vec()));
        let refusal = world.join(&flow).unwrap_err();
        assert_eq!(
            (refusal.reason(), refusal.side(), refusal.is_passing()),
            ("splices", Some(side), false),
            "{refusal}"
        );
    }
}

#[test]
fn a_receiver_that_begins_to_splice_has_its_direction_taken_back() {
    let Some(world) = World::untested() else { return };
    if !are_noticed(&world) {
        return;
    }
    let (flow, splicer) = (world.flow(), Splicer::new());
    let joined = world.joined(&flow);
    write(&flow.a, b"redirected");
    assert_eq!(
        splicer.take(&flow.b),
        Err(Errno::AGAIN),
        "it does not see what was redirected"
    );
    assert_eq!(joined.tally(Out).notes, note::SPLICES);
    assert!(!joined.is_armed(Out) && joined.is_armed(In));
    write(&flow.a, b"to the proxy");
    assert_eq!(read(&flow.pa, 12), b"to the proxy");
    // The proxy can tell that there is something which it did not read.
    world.memory.measure(&[joined.ticket()]).unwrap();
    assert!(joined.queued(Out) >= 10, "{}", joined.queued(Out));
}
