//! Ends of a connection in the places where relays get them wrong. Every case is held directly and through each kind of listener, and
//! must look the same.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use underpass_tests::conversation::Pattern;
use underpass_tests::{Config, Host, Listen, Process, Proxy, Target, Way, World, is_reset, open, wait};

/// How long a relay may take to show what a direct connection shows at once: above all a reset, which it holds back for a moment while
/// it tries to deliver what came before.
const SHOWN: Duration = Duration::from_secs(3);

#[test]
fn a_reset_is_seen_by_a_peer_that_does_not_read() {
    for_every_pair(|place, a, b| {
        let _ = write_until_stuck(&a, 1);
        reset(a);
        let mut descriptors = [PollFd::new(b.as_fd(), PollFlags::empty())];
        let timeout = PollTimeout::try_from(SHOWN).expect("a few seconds");
        poll(&mut descriptors, timeout).expect("poll");
        let shown = descriptors[0].revents().expect("known flags");
        assert!(
            shown.contains(PollFlags::POLLERR),
            "{}: poll should show the reset, shows {shown:?}",
            place.name
        );
    });
}

#[test]
fn what_was_sent_before_a_reset_arrives_before_it() {
    for_every_pair(|place, mut a, mut b| {
        a.write_all(b"established").expect("write");
        b.read_exact(&mut [0; 11]).expect("read");
        reset_after_a_message(place, a, b);
    });
}

#[test]
fn a_reset_right_after_the_accept_comes_after_its_data() {
    // The relay may not even have noticed yet that it is connected.
    for _ in 0..20 {
        for_every_pair(reset_after_a_message);
    }
}

fn reset_after_a_message(place: &Place<'_>, mut a: TcpStream, mut b: TcpStream) {
    let mut message = vec![0; 10_000];
    Pattern::new(3).fill(0, &mut message);
    a.write_all(&message).expect("write");
    reset(a);
    let mut got = Vec::new();
    let end = b.read_to_end(&mut got).expect_err("the end is a reset, not EOF");
    assert!(is_reset(&end), "{}: {end}", place.name);
    assert_eq!(Pattern::new(3).mismatch(0, &got), None, "{}", place.name);
    assert_eq!(got.len(), message.len(), "{}", place.name);
}

#[test]
fn eof_passes_while_the_other_direction_is_stuck() {
    for_every_pair(|place, mut a, mut b| {
        let stuck = write_until_stuck(&b, 1);
        a.write_all(b"bye").expect("write");
        a.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = Vec::new();
        b.set_nonblocking(false).expect("blocking");
        b.read_to_end(&mut got)
            .unwrap_or_else(|e| panic!("{}: {e}", place.name));
        assert_eq!(got, b"bye");
        b.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(read_pattern_to_eof(&mut a, 1), stuck, "{}", place.name);
    });
}

#[test]
fn two_stuck_directions_come_loose_again() {
    for_every_pair(|place, mut a, mut b| {
        let (from_a, from_b) = (write_until_stuck(&a, 1), write_until_stuck(&b, 2));
        for stream in [&a, &b] {
            stream.set_nonblocking(false).expect("blocking");
            stream.shutdown(Shutdown::Write).expect("shutdown");
        }
        assert_eq!(read_pattern_to_eof(&mut b, 1), from_a, "{}", place.name);
        assert_eq!(read_pattern_to_eof(&mut a, 2), from_b, "{}", place.name);
    });
}

#[test]
fn writing_to_a_peer_that_has_closed_fails() {
    for_every_pair(|place, a, mut b| {
        drop(a);
        let error = wait::some(wait::SOON, "a write fails", || b.write(&[0; 1000]).err());
        assert!(is_reset(&error), "{}: {error}", place.name);
    });
}

#[test]
fn closing_with_unread_data_is_a_reset() {
    for_every_pair(|place, a, mut b| {
        b.write_all(b"never read").expect("write");
        a.peek(&mut [0]).expect("it has arrived");
        drop(a);
        let end = b.read(&mut [0]).expect_err("a reset, not EOF");
        assert!(is_reset(&end), "{}: {end}", place.name);
    });
}

#[test]
fn a_peer_killed_with_unread_data_resets() {
    for_every_pair(|place, a, mut b| {
        b.write_all(b"never read").expect("write");
        a.peek(&mut [0]).expect("it has arrived");
        let mut sleeper = Process::command("sleep");
        sleeper.arg("1000").stdin(Stdio::from(OwnedFd::from(a)));
        let mut child = sleeper.spawn().expect("start sleep");
        drop(sleeper);
        child.kill().expect("kill");
        child.wait().expect("wait");
        let end = b.read(&mut [0]).expect_err("a reset, not EOF");
        assert!(is_reset(&end), "{}: {end}", place.name);
    });
}

#[test]
fn a_peer_killed_after_reading_everything_ends_with_eof() {
    for_every_pair(|place, a, mut b| {
        let sink = place.world.directory().join(format!("sink of {}", place.name));
        let mut reader = Process::command("cat");
        reader
            .stdin(Stdio::from(OwnedFd::from(a)))
            .stdout(File::create(&sink).expect("create a file"));
        let mut child = reader.spawn().expect("start cat");
        drop(reader);
        let message = vec![7; 300_000];
        b.write_all(&message).expect("write");
        wait::eventually(wait::SOON, "cat has read everything", || {
            fs::metadata(&sink).is_ok_and(|file| file.len() == message.len() as u64)
        });
        child.kill().expect("kill");
        child.wait().expect("wait");
        let end = b
            .read(&mut [0])
            .unwrap_or_else(|e| panic!("{}: EOF, not {e}", place.name));
        assert_eq!(end, 0);
        let error = wait::some(wait::SOON, "a write fails", || b.write(&[0; 1000]).err());
        assert!(is_reset(&error), "{}: {error}", place.name);
    });
}

/// Where a pair of sockets comes from, for files and messages.
struct Place<'a> {
    world: &'a World,
    name: String,
}

/// Runs `check` on the two ends of a connection, either end first, over every way.
#[track_caller]
fn for_every_pair(check: impl Fn(&Place<'_>, TcpStream, TcpStream)) {
    let world = World::loopback();
    let [proxy_host, client, server] = [(); 3].map(|()| world.host());
    let listener = server.listen(9000);
    let config = Config::new()
        .listener("relay", proxy_host.at(15001), Listen::fixed(server.at(9000)))
        .listener("socks", proxy_host.at(1080), Listen::Socks5)
        .listener("connect", proxy_host.at(3128), Listen::Connect);
    let _proxy = Proxy::start(&world, &proxy_host, &config);
    let (fixed, socks) = (Way::Fixed(proxy_host.at(15001)), Way::Socks5(proxy_host.at(1080)));
    for way in [Way::Direct, fixed, socks, Way::Connect(proxy_host.at(3128))] {
        for client_first in [true, false] {
            let (client, server) = pair(&client, way, &listener);
            let name = format!(
                "{way:?}, {}",
                if client_first {
                    "client to server"
                } else {
                    "server to client"
                }
            );
            let place = Place { world: &world, name };
            if client_first {
                check(&place, client, server)
            } else {
                check(&place, server, client)
            }
        }
    }
}

fn pair(client: &Host, way: Way, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let target = Target::Address(listener.local_addr().expect("bound"));
    let client = open(client, way, target).unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
    let (server, _) = listener.accept().expect("accept");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
    }
    (client, server)
}

/// Writes the pattern of `key` until nothing is taken any more; answers how many bytes were. Leaves the socket non-blocking.
fn write_until_stuck(mut stream: &TcpStream, key: u64) -> u64 {
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    let mut written = 0;
    let mut piece = vec![0; 64 * 1024];
    loop {
        Pattern::new(key).fill(written, &mut piece);
        match stream.write(&piece) {
            Ok(n) => written += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                // Stuck for good is what takes nothing for longer than any relay needs to pass something on.
                let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut descriptors, PollTimeout::from(300u16)).expect("poll") == 0 {
                    return written;
                }
            }
            Err(e) => panic!("write: {e}"),
        }
    }
}

/// Reads to EOF, verifying the pattern of `key`; answers how many bytes there were.
fn read_pattern_to_eof(stream: &mut TcpStream, key: u64) -> u64 {
    stream.set_nonblocking(false).expect("blocking");
    let mut read = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).expect("read") {
            0 => return read,
            n => {
                assert_eq!(Pattern::new(key).mismatch(read, &buffer[..n]), None);
                read += n as u64;
            }
        }
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("SO_LINGER");
}
