//! Blocking programs: a thread for each connection, or for each of its directions.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread;

use rustix::net::{RecvFlags, recv};

use crate::sizes::{LARGEST, pattern, piece, verify};

/// Of what one thread has read and another has not written yet.
const PIECES_BETWEEN: usize = 4;

pub(crate) fn serve(address: SocketAddr, echo: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        thread::spawn(move || echo(stream));
    }
}

/// One thread reads and writes in turn.
pub(crate) fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; LARGEST];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// One thread reads, another writes.
pub(crate) fn echo_by_two(mut stream: TcpStream) -> io::Result<()> {
    let (pieces, from_reader) = sync_channel::<Vec<u8>>(PIECES_BETWEEN);
    let mut reading = stream.try_clone()?;
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; LARGEST];
        while let Ok(n @ 1..) = reading.read(&mut buffer) {
            if pieces.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    for piece in from_reader {
        stream.write_all(&piece)?;
    }
    let ended = stream.shutdown(Shutdown::Write);
    reader.join().expect("the reading thread");
    ended
}

/// Looks at what is there before it takes it, and finds the same.
pub(crate) fn echo_after_peek(mut stream: TcpStream) -> io::Result<()> {
    let (mut seen, mut taken) = (vec![0; LARGEST], vec![0; LARGEST]);
    loop {
        let n = stream.peek(&mut seen)?;
        if n == 0 {
            return Ok(());
        }
        stream.read_exact(&mut taken[..n])?;
        if taken[..n] != seen[..n] {
            return Err(io::Error::other("what was taken is not what was seen"));
        }
        stream.write_all(&taken[..n])?;
    }
}

/// Takes pieces of one size, whole (MSG_WAITALL), but for the last.
pub(crate) fn echo_whole(mut stream: TcpStream) -> io::Result<()> {
    let mut piece = [0; 10_000];
    loop {
        let (n, _) = recv(&stream, &mut piece, RecvFlags::WAITALL)?;
        stream.write_all(&piece[..n])?;
        if n < piece.len() {
            return Ok(());
        }
    }
}

/// Runs `connection` of each number in a thread of its own.
pub(crate) fn load(connections: usize, connection: impl Fn(usize) -> io::Result<()> + Sync) -> io::Result<()> {
    thread::scope(|scope| {
        let connection = &connection;
        let threads: Vec<_> = (0..connections)
            .map(|number| scope.spawn(move || connection(number)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no connection panics"))
    })
}

/// One thread writes while another reads.
pub(crate) fn write_and_read(address: SocketAddr, number: usize, bytes: usize) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&stream, number, bytes));
        read(&stream, number, bytes)?;
        writer.join().expect("the writing thread")
    })
}

/// Writes everything, shuts down, then reads: what a blocking client does that knows how little it asks for. The answer must fit what
/// TCP holds.
pub(crate) fn write_then_read(address: SocketAddr, number: usize, bytes: usize) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    write(&stream, number, bytes)?;
    read(&stream, number, bytes)
}

fn write(mut stream: &TcpStream, number: usize, bytes: usize) -> io::Result<()> {
    let (mut buffer, mut written) = (vec![0; LARGEST], 0);
    while written < bytes {
        let piece = &mut buffer[..piece().min(bytes - written)];
        pattern(number).fill(written as u64, piece);
        stream.write_all(piece)?;
        written += piece.len();
    }
    stream.shutdown(Shutdown::Write)
}

/// Up to the EOF.
pub(crate) fn read(mut stream: &TcpStream, number: usize, bytes: usize) -> io::Result<()> {
    let (mut buffer, mut position) = (vec![0; LARGEST], 0);
    loop {
        let n = stream.read(&mut buffer)?;
        verify(number, position, &buffer[..n])?;
        position += n;
        if n == 0 && position == bytes {
            return Ok(());
        }
        if n == 0 {
            return Err(io::Error::other(format!("EOF after {position} bytes of {bytes}")));
        }
    }
}
