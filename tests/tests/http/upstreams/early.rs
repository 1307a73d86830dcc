//! Endpoints that answer before they have the whole request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, Sender};
use std::thread;

use super::place::Place;
use crate::client::{Client, Seen};

/// What the proxy keeps for another try is less than all of it.
const BODY: usize = 300 * 1024;
/// After so much of it the first try is answered.
const EARLY: usize = 20 * 1024;
const CHUNK: usize = 4 * 1024;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn read_head(stream: &mut impl BufRead) -> io::Result<()> {
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    Ok(())
}

/// Answers 503 after the beginning, and reads on until the proxy has let it go for another.
fn refuse_early(stream: TcpStream, let_go: &Sender<()>) -> io::Result<()> {
    let mut read = BufReader::new(stream.try_clone()?);
    read_head(&mut read)?;
    read.read_exact(&mut [0; EARLY])?;
    (&stream).write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")?;
    let end = io::copy(&mut read, &mut io::sink());
    let _ = let_go.send(());
    end.map(drop)
}

/// Reads a chunked request whole and says whether it is the one that was sent.
fn judge(stream: TcpStream) -> io::Result<()> {
    let mut read = BufReader::new(stream.try_clone()?);
    read_head(&mut read)?;
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        read.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut chunk = vec![0; length + 2];
        read.read_exact(&mut chunk)?;
        if length == 0 {
            break;
        }
        body.extend_from_slice(&chunk[..length]);
    }
    let verdict = match body == bytes(BODY) {
        true => "the same".to_owned(),
        false => format!("{} of {BODY} bytes", body.len()),
    };
    let length = verdict.len();
    write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{verdict}")
}

#[test]
fn another_try_has_the_whole_body_though_the_first_was_answered_early_and_reads_on() {
    let place = Place::new();
    let (let_go, was_let_go) = mpsc::channel();
    let listener = place.them.listen(9001);
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || {
        let mut tries = listener.incoming().flatten();
        let first = tries.next().expect("a try");
        thread::spawn(move || refuse_early(first, &let_go));
        for another in tries {
            thread::spawn(move || judge(another));
        }
    });
    let retry = ", retry: {on: [5xx], retries: 1, base_interval: 2s, max_interval: 2s}";
    let _proxy = place.start(&place.yaml(&[("web", format!("endpoints: ['{address}']"))], retry));
    let mut client = Client::connect(&place.client, place.ours());
    client.send(b"POST /web/ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let body = bytes(BODY);
    let mut chunks = body.chunks(CHUNK).map(|chunk| {
        let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
        framed
    });
    for chunk in chunks.by_ref().take(2 * EARLY / CHUNK) {
        client.send(&chunk);
    }
    // From then on the proxy makes its pause. Sooner it might be sent more than it keeps for another try.
    was_let_go.recv().expect("an early answer");
    for chunk in chunks {
        client.send(&chunk);
    }
    client.send(b"0\r\n\r\n");
    let seen = client.answer(false);
    assert_eq!((seen.status, seen.body.as_str()), (200, "the same"), "{seen:?}");
}

/// What a client sends that is answered early, by an endpoint that then closes: of the rest it wants nothing.
const LARGE: usize = 4 << 20;

/// Answers after the beginning, by as much as its peer's kernel takes at once, and closes with the rest unread: its kernel resets.
fn answer_and_close(stream: TcpStream, head: &str, end: &str) -> io::Result<()> {
    let mut read = BufReader::new(stream.try_clone()?);
    read_head(&mut read)?;
    read.read_exact(&mut [0; EARLY])?;
    let answer = [head.as_bytes(), &bytes(ANSWER), end.as_bytes()].concat();
    (&stream).write_all(&answer)
}

/// The length of an early answer.
const ANSWER: usize = 40 * 1024;

fn asked_with_much(place: &Place) -> Seen {
    let mut client = Client::connect(&place.client, place.ours());
    client.send(format!("POST /web/ HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n").as_bytes());
    client.send(&vec![b'x'; LARGE]);
    client.answer(false)
}

/// Whether it was read before the proxy found that nothing more is taken, is chance; so it is tried often.
#[test]
fn an_early_answer_is_whole_though_its_endpoint_closes_at_once() {
    for (head, end) in [
        (
            format!("HTTP/1.1 413 Too Large\r\ncontent-length: {ANSWER}\r\n\r\n"),
            "",
        ),
        (
            format!("HTTP/1.1 413 Too Large\r\ntransfer-encoding: chunked\r\n\r\n{ANSWER:x}\r\n"),
            "\r\n0\r\n\r\n",
        ),
    ] {
        let place = Place::new();
        let listener = place.them.listen(9001);
        let address = listener.local_addr().expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer_and_close(stream, &head, end);
            }
        });
        let _proxy = place.start(&place.yaml(&[("web", format!("endpoints: ['{address}']"))], ""));
        for _ in 0..20 {
            let seen = asked_with_much(&place);
            let body = String::from_utf8_lossy(&bytes(ANSWER)).into_owned();
            assert_eq!((seen.status, seen.is_whole, seen.body == body), (413, true, true));
        }
    }
}

/// One that ends with its connection, does not look whole when that was reset.
#[test]
fn an_early_answer_without_a_length_is_not_whole_when_its_connection_is_reset() {
    let place = Place::new();
    let listener = place.them.listen(9001);
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer_and_close(stream, "HTTP/1.1 413 Too Large\r\n\r\n", "");
        }
    });
    let _proxy = place.start(&place.yaml(&[("web", format!("endpoints: ['{address}']"))], ""));
    for _ in 0..20 {
        let seen = asked_with_much(&place);
        assert!(!(seen.status == 413 && seen.is_whole), "{}", seen.body.len());
    }
}
