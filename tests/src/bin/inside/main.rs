//! What the capture tests run inside a pod: a source of sockets for the test, an adversary, a foreign program on a cgroup; and the janitor
//! that cleans up behind them. See `underpass_tests::capture`.

#![deny(unsafe_code)]

mod connects;
mod flood;
mod foreign;
mod outcome;
mod packets;
mod raw;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use underpass_tests::capture;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["keep"] => capture::run_keeper(),
        ["janitor", cgroup, ref folders @ ..] => {
            let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
            capture::run_janitor(cgroup.as_ref(), &folders)
        }
        ["connect", how, target, ref more @ ..] => print(&connects::run(how, address(target), more)),
        ["on-stdin", target] => print(&connects::run_on_stdin(address(target))),
        ["packet", how, target, ref more @ ..] => packets::run(how, address(target), more),
        ["flood", target, threads] => flood::run(address(target), number(threads)),
        ["load", target] => flood::load(address(target)),
        ["begin", target, connections] => flood::begin(address(target), number(connections)),
        ["hold", target, connections] => flood::hold(address(target), number(connections)),
        ["rewrite", cgroup, from, to] => foreign::run(cgroup.as_ref(), address(from), address(to)),
        _ => panic!("not a command: {words:?}"),
    };
    done.unwrap_or_else(|error| panic!("inside {}: {error}", words.join(" ")));
}

fn print(outcome: &outcome::Outcome) -> io::Result<()> {
    println!("{}", outcome.to_json());
    Ok(())
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}
