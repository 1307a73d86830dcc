//! Programs that use their sockets in one certain way each, for the tests of the kernel tier: an echo server and its client.
//!
//! `application serve HOW ADDRESS` echoes what each connection sends, until its EOF. `application load HOW ADDRESS CONNECTIONS BYTES` sends so
//! much on each of so many connections, verifies the echo of every byte, and says so. `application sink ADDRESS` reads and forgets. None of
//! them knows of a proxy.

#![deny(unsafe_code)]

mod edge;
mod sizes;
mod splice;
mod threads;
mod uring;
mod zerocopy;

use std::io;
use std::net::SocketAddr;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve", how, address] => serve(how, address.parse().expect("an address")),
        ["sink", address] => edge::sink(address.parse().expect("an address")),
        ["load", how, address, connections, bytes] => {
            let (connections, bytes) = (number(connections), number(bytes));
            load(how, address.parse().expect("an address"), connections, bytes)
        }
        _ => panic!("not a command: {words:?}"),
    };
    done.unwrap_or_else(|error| panic!("application {}: {error}", words.join(" ")));
}

fn serve(how: &str, address: SocketAddr) -> io::Result<()> {
    match how {
        "edge" => edge::serve(address),
        "uring" => uring::serve(address, uring::Waits::ByPoll),
        "uring-blocking" => uring::serve(address, uring::Waits::Inside),
        "threads" => threads::serve(address, threads::echo),
        "duplex" => threads::serve(address, threads::echo_by_two),
        "peek" => threads::serve(address, threads::echo_after_peek),
        "whole" => threads::serve(address, threads::echo_whole),
        "splice" => threads::serve(address, splice::echo),
        "splice-polling" => threads::serve(address, splice::echo_when_readable),
        _ => panic!("no such server: {how}"),
    }
}

fn load(how: &str, address: SocketAddr, connections: usize, bytes: usize) -> io::Result<()> {
    match how {
        "edge" => edge::load(address, connections, bytes)?,
        "duplex" => threads::load(connections, |number| threads::write_and_read(address, number, bytes))?,
        "half-close" => threads::load(connections, |number| threads::write_then_read(address, number, bytes))?,
        "zerocopy" => threads::load(connections, |number| zerocopy::load(address, number, bytes))?,
        _ => panic!("no such client: {how}"),
    }
    println!("echoed {}", connections * bytes);
    Ok(())
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}
