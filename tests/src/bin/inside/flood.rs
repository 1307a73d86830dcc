//! Many connections: one after another, as fast as they can be begun, or as many as can be held.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use underpass_tests::wait;

use crate::outcome::Outcome;

/// After so many it says how many there were.
const REPORT: u64 = 1000;

/// Begins connections to `target` in so many threads and drops each at once, until it is killed; prints how many it has begun.
pub(crate) fn run(target: SocketAddr, threads: usize) -> io::Result<()> {
    let begun = AtomicU64::new(0);
    let begin = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Closed with a reset: what is left behind is the other side's alone.
        socket.set_linger(Some(Duration::ZERO))?;
        let _ = socket.connect(&target.into());
        Ok(())
    };
    let flood = || loop {
        if begin().is_ok() {
            let number = begun.fetch_add(1, Ordering::Relaxed) + 1;
            if number.is_multiple_of(REPORT) {
                println!("begun {number}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(flood);
        }
    });
    Ok(())
}

/// Connects to `target` and has a message echoed, one connection after another, until it is killed; prints how many there were.
pub(crate) fn load(target: SocketAddr) -> io::Result<()> {
    let mut answered = 0;
    loop {
        let outcome = Outcome::of(TcpStream::connect_timeout(&target, wait::soon()));
        if matches!(outcome, Outcome::Echoed { .. }) {
            answered += 1;
            println!("answered {answered}");
        }
    }
}

/// Begins so many connections without waiting for any, prints how many were refused at once, and keeps the others until it is killed.
pub(crate) fn begin(target: SocketAddr, connections: usize) -> io::Result<()> {
    let (mut begun, mut refused) = (Vec::new(), 0);
    for _ in 0..connections {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => begun.push(socket),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
            other => panic!("{other:?} after {} connections", begun.len()),
        }
    }
    println!("refused {refused}");
    loop {
        thread::park();
    }
}

/// Opens so many connections, prints how many it got, and holds them until it is killed.
pub(crate) fn hold(target: SocketAddr, connections: usize) -> io::Result<()> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        if socket.connect_timeout(&target.into(), wait::soon()).is_ok() {
            held.push(socket);
        }
    }
    println!("holds {}", held.len());
    loop {
        thread::park();
    }
}
