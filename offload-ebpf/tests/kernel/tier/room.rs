//! How much waits at a receiver that does not read, and that its sender sleeps.

use std::io::{ErrorKind, Write};
use std::sync::Arc;

use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{FlowMemory, Ticket};

use super::relay::Relay;
use super::world::{Flow, LIMIT, World, memory, read, set_option, write};
use crate::wait::eventually;

const MESSAGE: usize = 60_000;

/// What a message counts for beyond its bytes.
const MESSAGE_COST: u32 = 1024;

/// Writes until the socket does not take any more for a while; how many bytes that were.
fn fill_up(mut socket: &std::net::TcpStream, relay: &Relay) -> usize {
    let (mut written, mut refused) = (0, 0);
    while refused < 100 {
        match socket.write(&[5; MESSAGE]) {
            Ok(len) => (written, refused) = (written + len, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
        let queued = relay.queued();
        assert!(queued <= LIMIT + MESSAGE as u32, "{queued} bytes wait");
    }
    written
}

#[test]
fn a_sleeping_reader_costs_the_limit_and_one_message_and_its_writer_sleeps() {
    let Some(world) = World::new() else { return };
    let Flow { a, pa, h, b } = world.flow();
    let relay = Relay::start(pa, h, world.memory.clone(), world.joiner(world.tier.variant()));
    relay.join();
    let sent = fill_up(&a, &relay);
    let limit = LIMIT as usize;
    assert!(sent >= limit, "{sent} bytes");
    // The limit, the message beyond it, the one that is parked, and what the proxy's window took before it was small.
    // Plain TCP takes several megabytes.
    assert!(sent <= limit + 5 * MESSAGE, "{sent} bytes");
    let bytes = read(&b, sent);
    assert!(bytes.iter().all(|byte| *byte == 5));
    // And it goes on past the proxy.
    let before = relay.tally(Out).bypassed_messages;
    eventually("messages pass by again", || {
        write(&a, b"more");
        read(&b, 4);
        relay.tally(Out).bypassed_messages > before
    });
    drop((a, b));
    let account = relay.end();
    assert!(account.tallies[0].full > 0, "{account:?}");
}

#[test]
fn a_receiver_with_small_buffers_has_less_room() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        assert!(set_option(&flow.b, libc::SOL_SOCKET, option, 8192));
    }
    let joined = world.joined(&flow);
    for _ in 0..5 {
        write(&flow.a, &[5; 10_000]);
    }
    // The kernel doubles what is asked for: 16 KiB to receive, and half as much to send; and the message that found
    // room.
    let passed = joined.tally(Out).bypassed_bytes;
    assert!((10_000..=24 * 1024 + 10_000).contains(&passed), "{passed} bytes");
    assert_eq!(joined.tally(Out).full, 1);
}

#[test]
fn small_messages_count_for_what_they_cost_the_kernel() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    for round in 0..3 {
        let before = joined.tally(Out);
        let mut sent = 0;
        while joined.tally(Out).full == before.full {
            write(&flow.a, b"x");
            sent += 1;
            assert!(sent < 1000, "round {round}");
        }
        let passed = joined.tally(Out).bypassed_messages - before.bypassed_messages;
        assert!(passed <= u64::from(LIMIT / MESSAGE_COST) + 1, "{passed} messages wait");
        assert!(passed >= 50, "only {passed} messages");
        // What the proxy sends counts too, though it is sent whatever waits.
        assert_eq!(read(&flow.pa, 1), b"x");
        write(&flow.h, b"x");
        joined.handed_on(Out, 1);
        world.memory.measure(&[joined.ticket()]).unwrap();
        assert!(u64::from(joined.queued(Out)) > (passed + 1) * u64::from(MESSAGE_COST));
        assert_eq!(read(&flow.b, sent).len(), sent);
        world.memory.measure(&[joined.ticket()]).unwrap();
        assert_eq!(joined.queued(Out), 0);
    }
}

#[test]
fn queues_are_measured_many_at_a_time() {
    let Some(world) = World::new() else { return };
    let flows: Vec<_> = (0..70).map(|_| world.flow()).collect();
    let joined: Vec<_> = flows.iter().map(|flow| world.joined(flow)).collect();
    for (number, flow) in flows.iter().enumerate() {
        write(&flow.a, &vec![1; 100 + number]);
        write(&flow.b, &vec![1; 1000 + number]);
    }
    let tickets: Vec<_> = joined.iter().map(|joined| joined.ticket()).collect();
    world.memory.measure(&tickets).unwrap();
    for (number, joined) in joined.iter().enumerate() {
        let number = number as u32;
        let cost = |bytes| bytes + MESSAGE_COST;
        assert_eq!(
            (joined.queued(Out), joined.queued(In)),
            (cost(100 + number), cost(1000 + number))
        );
    }
    read(&flows[69].b, 169);
    world.memory.measure(&tickets[69..]).unwrap();
    assert_eq!(joined[69].queued(Out), 0);
    // Of a flow that nobody has: nothing is written.
    let stranger = Ticket {
        generation: tickets[0].generation + 1000,
        ..tickets[0]
    };
    world.memory.measure(&[stranger]).unwrap();
    assert_eq!(joined[0].queued(Out), 100 + MESSAGE_COST);
}

#[test]
fn a_proxy_without_privileges_maps_the_flows_and_measures() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"waiting");
    let (tier, ticket) = (world.tier.clone(), joined.ticket());
    let unprivileged = std::thread::spawn(move || {
        // SAFETY: the calls change this thread alone.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, 0), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534), 0);
        }
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        let memory = memory(&tier);
        memory.measure(&[ticket]).unwrap();
        let seen: Arc<FlowMemory> = memory;
        let flow = seen.flow(ticket);
        (flow.queued(Out), flow.tally(Out).bypassed_bytes)
    });
    assert_eq!(unprivileged.join().unwrap(), (7 + MESSAGE_COST, 7));
    assert!(!joined.is_armed(Out), "dropped by the other");
}

#[test]
fn the_writer_sleeps_as_soon_as_something_of_it_is_left_unread() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    for socket in [&flow.pa, &flow.h] {
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 16 * 1024);
    }
    assert_eq!(super::world::notsent_lowat(&flow.a), 0);
    let joined = world.joined(&flow);
    joined.disarm(Out);
    write(&flow.a, b"by TCP");
    assert_eq!(read(&flow.pa, 6), b"by TCP");
    eventually("TCP_NOTSENT_LOWAT is set", || super::world::notsent_lowat(&flow.a) == 1);
    assert_eq!(super::world::notsent_lowat(&flow.b), 0, "nothing of it went by TCP");
    assert_eq!(super::world::notsent_lowat(&flow.pa), 0, "the proxy's own");
}
