//! How streams end: FIN, RST, half-close, unread bytes.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{Variant, note};

use super::relay::Relay;
use super::world::{Flow, World, assert_nothing, read, read_to_end, unacknowledged, write};
use crate::wait::eventually;

/// A flow with a relay that has joined it, and its applications.
fn relayed(world: &World) -> (TcpStream, TcpStream, Relay) {
    relayed_as(world, world.tier.variant())
}

fn relayed_as(world: &World, variant: Variant) -> (TcpStream, TcpStream, Relay) {
    let Flow { a, pa, h, b } = world.flow();
    let relay = Relay::start(pa, h, world.memory.clone(), world.joiner(variant));
    relay.join();
    (a, b, relay)
}

/// Whether the peer has sent its end.
fn has_ended(socket: &TcpStream) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[test]
fn the_end_comes_after_what_passed_by() {
    let Some(world) = World::new() else { return };
    let (a, b, relay) = relayed(&world);
    write(&a, &[7; 100_000]);
    drop(a);
    assert_eq!(read_to_end(&b), (vec![7; 100_000], None));
    drop(b);
    let account = relay.end();
    assert_eq!((account.relayed, account.tallies[0].bypassed_bytes), ([0, 0], 100_000));
    assert!(!account.was_reset);
}

#[test]
fn after_a_half_close_the_other_direction_goes_on_past_the_proxy() {
    let Some(world) = World::new() else { return };
    let (a, b, relay) = relayed(&world);
    write(&a, b"question");
    a.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&b), (b"question".to_vec(), None));
    assert_eq!((&a).write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    write(&b, &[9; 50_000]);
    b.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&a), (vec![9; 50_000], None));
    let account = relay.end();
    assert_eq!(account.tallies.map(|tally| tally.bypassed_bytes), [8, 50_000]);
    // Unread when it shut down its side, but not closed.
    assert_eq!(account.tallies[1].notes & note::UNREAD_CLOSE, 0);
}

#[test]
fn shutting_down_with_bytes_unread_is_no_close() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"unread yet");
    flow.b.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&flow.h), (vec![], None));
    assert_eq!(joined.tally(Out).notes, 0);
    assert_eq!(joined.tally(In).notes, note::SENDER_ENDED);
    flow.pa.shutdown(Shutdown::Write).unwrap();
    flow.a.shutdown(Shutdown::Write).unwrap();
    flow.h.shutdown(Shutdown::Write).unwrap();
    // The end from both sides, and still it reads.
    eventually("the end has arrived", || joined.tally(Out).notes & note::HOP_ENDED != 0);
    assert_eq!(read_to_end(&flow.b), (b"unread yet".to_vec(), None));
    assert_eq!(joined.tally(Out).notes & note::UNREAD_CLOSE, 0);
}

#[test]
fn a_reset_comes_after_what_passed_by() {
    let Some(world) = World::new() else { return };
    let (a, b, relay) = relayed(&world);
    write(&a, b"last words");
    reset(a);
    let (bytes, end) = read_to_end(&b);
    assert_eq!(
        (bytes.as_slice(), end),
        (&b"last words"[..], Some(ErrorKind::ConnectionReset))
    );
    assert!(relay.end().was_reset);
}

#[test]
fn closing_with_bytes_unread_resets_the_sender() {
    let Some(world) = World::new() else { return };
    let (a, b, relay) = relayed(&world);
    write(&a, b"never read");
    assert_eq!(read(&b, 3), b"nev");
    drop(b);
    assert_eq!(read_to_end(&a).1, Some(ErrorKind::ConnectionReset));
    let account = relay.end();
    assert!(account.was_reset);
    assert_ne!(account.tallies[0].notes & note::UNREAD_CLOSE, 0, "{account:?}");
}

#[test]
fn closing_with_everything_read_does_not() {
    let Some(world) = World::new() else { return };
    let (a, b, relay) = relayed(&world);
    write(&a, b"read");
    assert_eq!(read(&b, 4), b"read");
    drop(b);
    assert_eq!(read_to_end(&a), (vec![], None));
    drop(a);
    let account = relay.end();
    assert!(!account.was_reset, "{account:?}");
}

/// The end that the hop sends waits in the receiver's queue like bytes, but is none.
#[test]
fn closing_after_the_end_of_the_stream_arrived_is_no_unread_close() {
    let Some(world) = World::new() else { return };
    for variant in world.tier.variants() {
        let is_noticed = |unread: &[u8]| {
            let flow = world.flow();
            let joined = world.joined_as(&flow, *variant);
            write(&flow.a, unread);
            flow.h.shutdown(Shutdown::Write).unwrap();
            eventually("the end has arrived", || has_ended(&flow.b));
            drop(flow.b);
            joined.tally(Out).notes & note::UNREAD_CLOSE != 0
        };
        assert!(!is_noticed(b""), "{variant:?}");
        // Once in a great many closes the kernel has given the queue back (in a work of its own) before it says that the state changes: there is
        // nothing to be seen of it then.
        assert!((0..3).any(|_| is_noticed(b"u")), "{variant:?}");
    }
}

#[test]
fn the_end_of_a_stream_that_comes_after_the_receiver_was_closed_is_no_unread_close() {
    let Some(world) = World::new() else { return };
    for variant in world.tier.variants() {
        let flow = world.flow();
        let joined = world.joined_as(&flow, *variant);
        joined.disarm(In);
        // Its own end waits behind what nobody reads, so that it still awaits an answer when the other end comes.
        while (&flow.b).write(&[0; 65536]).is_ok() {}
        drop(flow.b);
        flow.h.shutdown(Shutdown::Write).unwrap();
        eventually("the end has arrived", || unacknowledged(&flow.h) == 0);
        assert_eq!(joined.tally(Out).notes & note::UNREAD_CLOSE, 0, "{variant:?}");
    }
}

#[test]
fn both_ends_may_close_at_once() {
    let Some(world) = World::new() else { return };
    for variant in world.tier.variants() {
        for round in 0..100 {
            let (a, b, relay) = relayed_as(&world, *variant);
            write(&a, b"question");
            assert_eq!(read(&b, 8), b"question");
            std::thread::scope(|scope| {
                scope.spawn(|| drop(a));
                drop(b);
            });
            let account = relay.end();
            assert!(!account.was_reset, "{variant:?}, round {round}: {account:?}");
            let notes = account.tallies.map(|tally| tally.notes & note::UNREAD_CLOSE);
            assert_eq!(notes, [0, 0], "{variant:?}, round {round}");
        }
    }
}

#[test]
fn a_hop_that_has_ended_closes_its_direction_before_the_receiver_knows() {
    let Some(world) = World::new() else { return };
    for abort in [false, true] {
        let Flow { a, pa, h, b } = world.flow();
        let flow = Flow { a, pa, h, b };
        let joined = world.joined(&flow);
        write(&flow.a, b"past");
        let Flow { a, pa, h, b } = flow;
        if abort {
            reset(h)
        } else {
            drop(h)
        }
        // As soon as the socket is closed: that is when the call returns, unless another test has just forked, whose child has all that is
        // open here until it is another program.
        let noted = note::HOP_ENDED | if abort { note::CUT_OFF } else { 0 };
        eventually("the hop's end is noted", || joined.tally(Out).notes == noted);
        assert!(!joined.is_armed(Out));
        // A reset has ended the receiver too, which is the other direction's sender.
        assert_eq!(joined.is_armed(In), !abort);
        joined.arm(Out);
        write(&a, b"late");
        let (bytes, end) = read_to_end(&b);
        // A reset that is not the sender's takes what was not read yet with it.
        let expected: &[u8] = if abort { b"" } else { b"past" };
        assert_eq!((bytes.as_slice(), end.is_some()), (expected, abort));
        assert_eq!(read(&pa, 4), b"late");
        // The other direction is a matter of the other hop.
        if abort {
            continue;
        }
        write(&b, b"back");
        assert_eq!(read(&a, 4), b"back");
        drop(pa);
        assert_eq!(joined.tally(In).notes, note::HOP_ENDED);
    }
}

#[test]
fn bytes_of_an_idle_flow_are_where_they_were() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let _joined = world.joined(&flow);
    for socket in [&flow.a, &flow.pa, &flow.h, &flow.b] {
        assert_nothing(socket);
    }
}
