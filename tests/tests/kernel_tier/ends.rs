//! Ends of connections in the kernel, in the places where relays get them wrong. Every case is held without a proxy too, and must look
//! the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use underpass_tests::conversation::Pattern;
use underpass_tests::{Process, is_reset, wait};

use crate::pair::{Waiting, connect};
use crate::place::{IMPATIENT, PORT, Place};

/// A direction that takes nothing for so long is stuck.
const STUCK: u16 = 300;
/// A moment in which nothing must happen.
const A_MOMENT: Duration = Duration::from_millis(100);

#[test]
fn what_was_sent_before_a_reset_arrives_before_it() {
    for_every_pair(|name, mut a, mut b| {
        let mut message = vec![0; 10_000];
        Pattern::new(3).fill(0, &mut message);
        a.write_all(&message).expect("write");
        SockRef::from(&a.0).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(a);
        let mut got = Vec::new();
        let end = b.read_to_end(&mut got).expect_err("the end is a reset, not EOF");
        assert!(is_reset(&end), "{name}: {end}");
        assert_eq!(
            (got.len(), Pattern::new(3).mismatch(0, &got)),
            (message.len(), None),
            "{name}"
        );
    });
}

#[test]
fn a_reset_is_seen_by_a_peer_that_does_not_read() {
    for_every_pair(|name, a, b| {
        let _ = write_until_stuck(&a, 1);
        SockRef::from(&a.0).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(a);
        let mut descriptors = [PollFd::new(b.0.as_fd(), PollFlags::empty())];
        poll(&mut descriptors, PollTimeout::try_from(wait::soon()).expect("fits")).expect("poll");
        let shown = descriptors[0].revents().expect("known flags");
        assert!(
            shown.contains(PollFlags::POLLERR),
            "{name}: poll should show the reset, shows {shown:?}"
        );
    });
}

#[test]
fn everything_arrives_before_an_eof() {
    for_every_pair(|name, mut a, mut b| {
        let writer = thread::spawn(move || {
            let mut message = vec![0; 3_000_000];
            Pattern::new(4).fill(0, &mut message);
            a.write_all(&message).expect("write");
            a.0.shutdown(Shutdown::Write).expect("shutdown");
            a
        });
        assert_eq!(read_pattern_to_eof(&mut b, 4), 3_000_000, "{name}");
        let mut a = writer.join().expect("the writer");
        b.write_all(b"answer").expect("write");
        drop(b);
        let mut got = Vec::new();
        a.read_to_end(&mut got).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got, b"answer", "{name}");
    });
}

#[test]
fn eof_passes_while_the_other_direction_is_stuck() {
    for_every_pair(|name, mut a, mut b| {
        let stuck = write_until_stuck(&b, 1);
        a.write_all(b"bye").expect("write");
        a.0.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = Vec::new();
        b.read_to_end(&mut got).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got, b"bye", "{name}");
        b.0.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(read_pattern_to_eof(&mut a, 1), stuck, "{name}");
    });
}

#[test]
fn two_stuck_directions_come_loose_again() {
    for_every_pair(|name, mut a, mut b| {
        let (from_a, from_b) = (write_until_stuck(&a, 1), write_until_stuck(&b, 2));
        for side in [&a, &b] {
            side.0.shutdown(Shutdown::Write).expect("shutdown");
        }
        assert_eq!(read_pattern_to_eof(&mut b, 1), from_a, "{name}");
        assert_eq!(read_pattern_to_eof(&mut a, 2), from_b, "{name}");
    });
}

#[test]
fn writing_to_a_peer_that_has_closed_fails() {
    for_every_pair(|name, a, mut b| {
        drop(a);
        let error = wait::some(wait::SOON, "a write fails", || b.write(&[0; 1000]).err());
        assert!(is_reset(&error), "{name}: {error}");
    });
}

#[test]
fn closing_with_unread_data_is_a_reset() {
    for_every_pair(|name, a, mut b| {
        b.write_all(b"never read").expect("write");
        wait_for_data(&a);
        drop(a);
        let end = b.read(&mut [0]).expect_err("a reset, not EOF");
        assert!(is_reset(&end), "{name}: {end}");
    });
}

#[test]
fn a_peer_killed_with_unread_data_resets() {
    for_every_pair(|name, a, mut b| {
        b.write_all(b"never read").expect("write");
        wait_for_data(&a);
        let mut sleeper = Process::command("sleep");
        sleeper.arg("1000").stdin(Stdio::from(OwnedFd::from(a.0)));
        let mut child = sleeper.spawn().expect("start sleep");
        drop(sleeper);
        child.kill().expect("kill");
        child.wait().expect("wait");
        let end = b.read(&mut [0]).expect_err("a reset, not EOF");
        assert!(is_reset(&end), "{name}: {end}");
    });
}

#[test]
fn nothing_is_sent_after_the_own_eof() {
    for_every_pair(|name, mut a, mut b| {
        a.write_all(b"last words").expect("write");
        a.0.shutdown(Shutdown::Write).expect("shutdown");
        let error = a.write(b"more").expect_err("it is shut down");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{name}: {error}");
        let mut got = Vec::new();
        b.read_to_end(&mut got).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got, b"last words", "{name}");
        a.write(b"more").expect_err("it still is");
        thread::sleep(A_MOMENT);
        assert_eq!(b.read(&mut [0]).expect("EOF for ever"), 0, "{name}");
    });
}

#[test]
fn peeking_takes_nothing() {
    for_every_pair(|name, mut a, mut b| {
        for message in [&b"one"[..], b"two", b"three"] {
            a.write_all(message).expect("write");
            wait_for_data(&b);
            let mut seen = [0; 10];
            let n = b.0.peek(&mut seen).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(&seen[..n], message, "{name}");
            let n = b.read(&mut seen).expect("read");
            assert_eq!(&seen[..n], message, "{name}");
        }
    });
}

#[test]
fn both_ends_may_close_at_once() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    for round in 0..20 {
        let pair = place.open(&listener);
        place.settle_in_the_kernel(&pair);
        let source = pair.source();
        drop(pair);
        let line = place.proxy.access_line(source);
        assert_eq!(line.field("reason"), "completed", "round {round}: {}", line.text);
    }
}

/// Runs `check` on the two ends of a connection, either end first: of one without a proxy, and of one that is in the kernel.
#[track_caller]
fn for_every_pair(check: impl Fn(&str, Waiting, Waiting)) {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    for client_first in [true, false] {
        // A pod's talk with itself is not captured.
        let direct = connect(&place.server, place.server.at(PORT), &listener);
        let in_kernel = place.open(&listener);
        place.settle_in_the_kernel(&in_kernel);
        for (how, pair) in [("direct", direct), ("in the kernel", in_kernel)] {
            let (client, server) = (Waiting(pair.client), Waiting(pair.server));
            if client_first {
                check(&format!("{how}, client to server"), client, server);
            } else {
                check(&format!("{how}, server to client"), server, client);
            }
        }
    }
}

fn wait_for_data(side: &Waiting) {
    let mut descriptors = [PollFd::new(side.0.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(wait::soon()).expect("fits");
    assert_eq!(poll(&mut descriptors, timeout).expect("poll"), 1, "it has arrived");
}

/// Writes the pattern of `key` until nothing is taken any more; answers how many bytes were.
fn write_until_stuck(side: &Waiting, key: u64) -> u64 {
    let mut stream: &TcpStream = &side.0;
    let (mut written, mut piece) = (0, vec![0; 64 * 1024]);
    loop {
        Pattern::new(key).fill(written, &mut piece);
        match stream.write(&piece) {
            Ok(n) => written += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut descriptors, PollTimeout::from(STUCK)).expect("poll") == 0 {
                    return written;
                }
            }
            Err(e) => panic!("write: {e}"),
        }
    }
}

/// Reads to EOF, verifying the pattern of `key`; answers how many bytes there were.
fn read_pattern_to_eof(side: &mut Waiting, key: u64) -> u64 {
    let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        match side.read(&mut buffer).expect("read") {
            0 => return read,
            n => {
                assert_eq!(Pattern::new(key).mismatch(read, &buffer[..n]), None);
                read += n as u64;
            }
        }
    }
}
