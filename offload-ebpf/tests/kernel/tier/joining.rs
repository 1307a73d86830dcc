//! Which sockets are joined, which are not and why, and that a refusal leaves no trace.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};

use underpass_ebpf::Note;
use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{Side, note};

use super::world::{
    Flow, LIMIT, World, assert_nothing, bypassed, connect, join_between, listen, memory, read, set_option, write,
};
use crate::objects::{ForeignSockMap, keys, open_pin};
use crate::pod::{Pod, accept, handshakes};
use crate::site::{Namespace, Site};
use crate::wait::eventually;

/// Bytes go both ways past the proxy.
#[track_caller]
fn assert_passes_by(world: &World, flow: &Flow) {
    let joined = world.joined(flow);
    write(&flow.a, b"request");
    assert_eq!(read(&flow.b, 7), b"request");
    write(&flow.b, b"the answer");
    assert_eq!(read(&flow.a, 10), b"the answer");
    assert_nothing(&flow.pa);
    assert_nothing(&flow.h);
    assert_eq!(joined.tally(Out), bypassed(7, 1));
    assert_eq!(joined.tally(In), bypassed(10, 1));
}

/// The flow is refused for this reason, on this side, and goes on as it was.
#[track_caller]
fn assert_refused(world: &World, flow: &Flow, reason: &str, side: Option<Side>, is_passing: bool) {
    let refusal = world.join(flow).unwrap_err();
    assert_eq!(
        (refusal.reason(), refusal.side(), refusal.is_passing()),
        (reason, side, is_passing),
        "{refusal}"
    );
    assert_eq!(joined_sockets(&world.site), 0);
    write(&flow.a, b"ping");
    flow.relay_out(4);
    assert_eq!(read(&flow.b, 4), b"ping");
}

fn joined_sockets(site: &Site) -> usize {
    let maps = site.layout.pin_dir.join("maps");
    let count = |name| keys(&open_pin(&maps.join(name)).unwrap()).len();
    count("SOCKS") + count("SOCKS_VERDICT")
}

#[test]
fn messages_of_a_flow_joined_in_mid_stream_pass_the_proxy_by() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    write(&flow.a, b"before");
    flow.relay_out(6);
    assert_eq!(read(&flow.b, 6), b"before");
    assert_passes_by(&world, &flow);
    assert_eq!(joined_sockets(&world.site), 4);
}

#[test]
fn ipv6_and_mapped_addresses_are_joined() {
    let Some(world) = World::new() else { return };
    for (address, by) in [
        ("::1", "::1"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::", "::ffff:127.0.0.1"),
    ] {
        assert_passes_by(&world, &world.flow_at(address, by));
    }
}

#[test]
fn a_captured_connection_between_two_pods_is_joined() {
    let Some(World {
        site,
        capture,
        tier,
        agent,
        ..
    }) = World::new()
    else {
        return;
    };
    let pods = [Pod::new(&site, 1), Pod::new(&site, 2)];
    for pod in &pods {
        capture.enrol(&pod.spec()).unwrap();
    }
    let [client, server] = &pods;
    let listener = server.serve("0.0.0.0:0");
    let a = connect(&client.app, server.v4(listener.port));
    let (pa, _) = client.accept_outbound(false);
    let (maps, to) = (handshakes(&capture), server.v4(listener.port));
    let note = Note::peer(a.local_addr().unwrap());
    let h = client.proxy.run(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        maps.announce(socket.as_fd(), note).unwrap();
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    });
    let b = accept(&server.app, &listener.listener).0;
    let flow = Flow::new(a, pa, h, b);

    let namespaces = [client.namespace.handle.as_fd(), server.namespace.handle.as_fd()];
    let ticket = join_between(&agent, &tier, &flow.pa, &flow.h, namespaces, LIMIT, None).unwrap();
    let joined = memory(&tier).flow(ticket);
    joined.arm(Out);
    write(&flow.a, b"request");
    assert_eq!(read(&flow.b, 7), b"request");
    assert_nothing(&flow.pa);
    assert_eq!(joined.tally(Out), bypassed(7, 1));
}

#[test]
fn a_blocking_application_is_refused() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    flow.a.set_nonblocking(false).unwrap();
    assert_refused(&world, &flow, "blocking", Some(Side::Client), false);
    flow.a.set_nonblocking(true).unwrap();
    flow.b.set_nonblocking(false).unwrap();
    assert_refused(&world, &flow, "blocking", Some(Side::Server), false);
    flow.b.set_nonblocking(true).unwrap();
    assert_passes_by(&world, &flow);
}

#[test]
fn a_connection_that_waits_to_be_accepted_is_refused_for_now() {
    let Some(world) = World::new() else { return };
    let [front, back] = [&world.proxy, &world.app].map(|place| listen(place, "127.0.0.1"));
    let a = connect(&world.app, front.local_addr().unwrap());
    let pa = accept(&world.proxy, &front).0;
    let h = connect(&world.proxy, back.local_addr().unwrap());
    a.set_nonblocking(true).unwrap();
    let refusal = world.join_as(&pa, &h, LIMIT, None).unwrap_err();
    assert_eq!(
        (refusal.reason(), refusal.side(), refusal.is_passing()),
        ("not_accepted", Some(Side::Server), true)
    );
    let b = accept(&world.app, &back).0;
    assert_passes_by(&world, &Flow::new(a, pa, h, b));
}

#[test]
fn an_application_that_has_not_read_everything_is_refused_for_now() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    write(&flow.h, b"unread");
    eventually("it has arrived", || flow.b.peek(&mut [0; 6]).is_ok_and(|len| len == 6));
    assert_eq!(read(&flow.b, 5), b"unrea");
    let refusal = world.join(&flow).unwrap_err();
    assert_eq!(
        (refusal.reason(), refusal.side(), refusal.is_passing()),
        ("not_quiet", Some(Side::Server), true)
    );
    assert_eq!(read(&flow.b, 1), b"d");
    assert_passes_by(&world, &flow);
}

/// What applications ask for, with the name of the refusal and the note.
const REQUESTS: [(i32, i32, i32, &str, u32); 4] = [
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1, "zerocopy", note::ASKED_ZEROCOPY),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100, "rcvlowat", note::ASKED_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_REPAIR, 1, "repair", note::ASKED_REPAIR),
    // "tls\0"; a kernel that does not know it says so, but the application will not be what we think.
    (
        libc::IPPROTO_TCP,
        libc::TCP_ULP,
        i32::from_le_bytes(*b"tls\0"),
        "ulp",
        note::ASKED_ULP,
    ),
];

#[test]
fn an_application_that_asks_for_what_redirected_bytes_cannot_give_is_refused_for_good() {
    let Some(world) = World::new() else { return };
    for (level, name, value, reason, _) in REQUESTS {
        let flow = world.flow();
        let was_set = set_option(&flow.b, level, name, value);
        let refusal = world.join(&flow).unwrap_err();
        assert_eq!(
            (refusal.reason(), refusal.side()),
            (reason, Some(Side::Server)),
            "{refusal}"
        );
        if was_set && name != libc::TCP_ULP {
            // Taken back, but it was asked for. The client's socket, joined before this one is refused, is taken out
            // again.
            assert!(set_option(&flow.b, level, name, i32::from(name == libc::SO_RCVLOWAT)));
            assert_refused(&world, &flow, reason, Some(Side::Server), false);
        }
        let flow = world.flow();
        set_option(&flow.a, level, name, value);
        let refusal = world.join(&flow).unwrap_err();
        assert_eq!(
            (refusal.reason(), refusal.side()),
            (reason, Some(Side::Client)),
            "{refusal}"
        );
    }
    let flow = world.flow();
    for (level, name, harmless) in [
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY, 0),
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1),
    ] {
        assert!(set_option(&flow.a, level, name, harmless));
    }
    assert_passes_by(&world, &flow);
}

#[test]
fn an_application_that_asks_later_takes_its_flow_out() {
    let Some(world) = World::new() else { return };
    for (level, name, value, _, note) in REQUESTS {
        for client_asks in [true, false] {
            let flow = world.flow();
            let joined = world.joined(&flow);
            write(&flow.a, b"past");
            assert_eq!(read(&flow.b, 4), b"past");
            let asks = if client_asks { &flow.a } else { &flow.b };
            set_option(asks, level, name, value);
            if name == libc::TCP_REPAIR {
                assert!(set_option(asks, level, name, 0));
            }
            for direction in [Out, In] {
                assert_eq!(joined.tally(direction).notes, note);
                joined.arm(direction);
                assert!(!joined.is_armed(direction));
            }
            write(&flow.a, b"through");
            flow.relay_out(7);
            assert_eq!(joined.tally(Out).bypassed_bytes, 4);
            if name != libc::SO_RCVLOWAT {
                assert_eq!(read(&flow.b, 7), b"through");
            }
        }
    }
}

#[test]
fn a_socket_in_another_programs_map_is_refused() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let foreign = ForeignSockMap::new();
    foreign.insert(flow.b.as_fd());
    assert_refused(&world, &flow, "busy", Some(Side::Server), false);
    foreign.remove();
    assert_passes_by(&world, &flow);
}

#[test]
fn a_joined_flow_is_not_joined_again() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let _joined = world.joined(&flow);
    let refusal = world.join(&flow).unwrap_err();
    assert_eq!(refusal.reason(), "hop", "{refusal}");
    assert_eq!(joined_sockets(&world.site), 4);
}

#[test]
fn a_connection_that_has_begun_to_end_is_refused() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    flow.b.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("the end has arrived", || {
        (&flow.h).read(&mut [0]).is_ok_and(|len| len == 0)
    });
    let refusal = world.join(&flow).unwrap_err();
    assert_eq!(refusal.reason(), "hop_not_established", "{refusal}");
}

#[test]
fn a_socket_elsewhere_is_not_found() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let (here, elsewhere) = (world.site.node.handle.as_fd(), Namespace::new());
    let namespaces = [here, elsewhere.handle.as_fd()];
    let refusal = join_between(&world.agent, &world.tier, &flow.pa, &flow.h, namespaces, LIMIT, None).unwrap_err();
    assert_eq!((refusal.reason(), refusal.side()), ("not_found", Some(Side::Server)));
}

#[test]
fn a_connection_that_is_not_followed_is_refused() {
    let Some(mut world) = World::new() else { return };
    // Of no cgroup to which the programs are attached.
    world.app = world.site.node.place(None);
    let flow = world.flow();
    assert_refused(&world, &flow, "not_followed", Some(Side::Client), false);
}

#[test]
fn descriptors_that_are_no_sockets_are_an_error() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let pipe: std::os::fd::OwnedFd = std::io::pipe().unwrap().0.into();
    // SAFETY: a descriptor of another kind than it says, which is the point.
    let not_a_socket = unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(libc::dup(pipe.as_raw_fd())) };
    let refusal = world.join_as(&not_a_socket, &flow.h, LIMIT, None).unwrap_err();
    assert_eq!(refusal.reason(), "system");
    assert_passes_by(&world, &flow);
}
