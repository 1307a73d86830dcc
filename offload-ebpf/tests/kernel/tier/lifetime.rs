//! What outlives whom: agents, proxies, the capture.

use std::sync::Arc;

use underpass_ebpf::Capture;
use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{Tier, note};

use super::world::{World, assert_nothing, bypassed, read, write};
use crate::objects::{Object, all_pinned, keys, open_pin};
use crate::wait::eventually;

#[test]
fn the_next_agent_adopts_joined_flows() {
    let Some(mut world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    world.capture = world.site.start();
    world.tier = Arc::new(Tier::start(&world.capture).unwrap());
    write(&flow.a, b"past");
    assert_eq!(read(&flow.b, 4), b"past");
    assert_eq!(joined.tally(Out), bypassed(4, 1));
    // And gives the place to nobody else.
    let others: Vec<_> = (0..10).map(|_| world.flow()).collect();
    for other in &others {
        let ticket = world.join(other).unwrap();
        assert_ne!(ticket.index, joined.ticket().index);
        assert_ne!(ticket.generation, joined.ticket().generation);
    }
    assert_eq!(joined.tally(Out), bypassed(4, 1));
}

#[test]
fn flows_go_on_while_programs_of_another_version_take_over() {
    let Some(mut world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    crate::adoption::pretend_another_version(&world.site.layout.pin_dir);
    world.capture = world.site.start();
    world.tier = Arc::new(Tier::start(&world.capture).unwrap());
    write(&flow.a, b"past");
    assert_eq!(read(&flow.b, 4), b"past");
    drop(flow.h);
    assert_eq!(joined.tally(Out).notes, note::HOP_ENDED);
}

#[test]
fn the_memory_works_without_an_agent() {
    let Some(mut world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    // The last descriptors of the agent.
    world.tier = Arc::new(Tier::start(&world.capture).unwrap());
    write(&flow.a, b"past");
    world.memory.measure(&[joined.ticket()]).unwrap();
    assert!(joined.queued(Out) > 4);
}

#[test]
fn detaching_gives_joined_flows_back_and_leaves_nothing_when_they_close() {
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"past");
    let objects = all_pinned(&world.site.layout.pin_dir);
    // The agent is gone.
    let World {
        tier,
        memory,
        capture,
        site,
        app,
        proxy,
        agent,
    } = world;
    drop((tier, capture, app, proxy, agent));
    Capture::detach(&site.layout).unwrap();
    for direction in [Out, In] {
        assert_eq!(joined.tally(direction).notes, note::DETACHED);
        joined.arm(direction);
    }
    // Nobody would notice the end of the proxy now.
    write(&flow.a, b"through");
    flow.relay_out(7);
    assert_eq!(read(&flow.b, 11), b"pastthrough");
    assert_eq!(joined.tally(Out).bypassed_bytes, 4);
    drop((joined, memory, flow));
    let mut left = Vec::new();
    eventually("all objects are gone", || {
        left = objects
            .iter()
            .filter(|object: &&Object| object.exists())
            .copied()
            .collect();
        left.is_empty()
    });
}

#[test]
fn sockets_leave_the_maps_as_they_close_and_the_place_is_used_again() {
    let Some(world) = World::new() else { return };
    let sockets = || keys(&open_pin(&world.site.layout.pin_dir.join("maps/SOCKS")).unwrap()).len();
    let flow = world.flow();
    let joined = world.joined(&flow);
    assert_eq!(sockets(), 4);
    drop(flow);
    eventually("no socket is left", || sockets() == 0);
    world.tier.leave(joined.ticket());
    let flow = world.flow();
    let other = world.joined(&flow);
    assert_ne!(other.ticket(), joined.ticket());
    write(&flow.a, b"past");
    assert_eq!(read(&flow.b, 4), b"past");
    assert_nothing(&flow.pa);
}

#[test]
fn a_flow_that_is_forgotten_late_leaves_the_next_one_at_its_place_alone() {
    let Some(mut world) = World::new() else { return };
    let sockets = || keys(&open_pin(&world.site.layout.pin_dir.join("maps/SOCKS")).unwrap()).len();
    let [first, second] = [world.flow(), world.flow()];
    let (forgotten, _second) = (world.joined(&first), world.joined(&second));
    drop(first);
    eventually("only the second is left", || sockets() == 4);
    // An agent that knows nothing of the first.
    world.tier = Arc::new(Tier::start(&world.capture).unwrap());
    let flow = world.flow();
    let joined = world.joined(&flow);
    assert_eq!(joined.ticket().index, forgotten.ticket().index);
    drop(forgotten);
    assert!(joined.is_armed(Out) && joined.is_armed(In));
    drop(joined);
    write(&flow.a, b"through");
    assert_eq!(read(&flow.pa, 7), b"through");
}
