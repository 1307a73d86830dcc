//! What the tier costs. Not asserted: `cargo test -p underpass-ebpf --test kernel tier::cost -- --ignored --nocapture`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use underpass_ebpf::tier::Direction::Out;

use super::world::{World, read, write};

/// One thread sends and receives, so that nothing but the system calls is measured.
fn per_message(mut from: &TcpStream, mut to: &TcpStream) -> f64 {
    let (message, mut buffer) = ([7; 64], [0; 64]);
    let count = 100_000;
    let started = Instant::now();
    for _ in 0..count {
        from.write_all(&message).unwrap();
        to.read_exact(&mut buffer).unwrap();
    }
    started.elapsed().as_secs_f64() / f64::from(count) * 1e9
}

#[test]
#[ignore = "a measurement"]
fn what_a_join_a_message_and_a_measurement_cost() {
    let Some(world) = World::new() else { return };
    let flows: Vec<_> = (0..300).map(|_| world.flow()).collect();
    let started = Instant::now();
    let joined: Vec<_> = flows.iter().map(|flow| world.joined(flow)).collect();
    eprintln!(
        "join, with a change of threads: {:?}",
        started.elapsed() / flows.len() as u32
    );

    let tickets: Vec<_> = joined.iter().map(|joined| joined.ticket()).collect();
    for count in [1, 64, 300] {
        let started = Instant::now();
        for _ in 0..1000 {
            world.memory.measure(&tickets[..count]).unwrap();
        }
        eprintln!("measure {count}: {:?}", started.elapsed() / 1000);
    }

    let direct = world.flow();
    let (a, b) = (&direct.a, &direct.pa);
    for _ in 0..2 {
        eprintln!("64 bytes by TCP over loopback, one way: {:.0} ns", per_message(a, b));
        eprintln!(
            "64 bytes past the proxy, one way: {:.0} ns",
            per_message(&flows[0].a, &flows[0].b)
        );
        eprintln!(
            "64 bytes of a hop, redirected, one way: {:.0} ns",
            per_message(&flows[1].h, &flows[1].b)
        );
    }
    joined[2].disarm(Out);
    eprintln!(
        "64 bytes of a joined but unarmed flow, by TCP, one way: {:.0} ns",
        per_message(&flows[2].a, &flows[2].pa)
    );
    write(&flows[3].a, b"warm");
    read(&flows[3].b, 4);
}
