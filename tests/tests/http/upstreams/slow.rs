//! Endpoints that take a request little by little.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use underpass_tests::Host;

use super::place::Place;
use crate::attacks::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, frame, read_frame};
use crate::client::Client;

/// RFC 7541, appendix A: `:status: 200` of the static table.
const OK: u8 = 0x88;
/// How long nothing may move.
const IDLE: Duration = Duration::from_millis(1500);
/// Between two of the little that an endpoint takes.
const PAUSE: Duration = Duration::from_millis(150);
/// So often: for twice as long as nothing may move.
const TIMES: usize = 20;

/// By HTTP/2 it is the endpoint that says how much it takes: so little at a time.
const WINDOW: usize = 500;

fn http2(host: &Host) -> SocketAddr {
    let listener = host.listen(9002);
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || listener.incoming().flatten().try_for_each(serve_http2));
    address
}

fn serve_http2(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    // SETTINGS_INITIAL_WINDOW_SIZE
    let window = [&4u16.to_be_bytes()[..], &(WINDOW as u32).to_be_bytes()].concat();
    stream.write_all(&frame(SETTINGS, 0, 0, &window))?;
    loop {
        let (kind, flags, id, content) = read_frame(&stream)?;
        match kind {
            SETTINGS if flags == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            DATA | HEADERS if flags & END_STREAM != 0 => {
                stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &[OK]))?;
            }
            DATA => {
                thread::sleep(PAUSE);
                let length = (content.len() as u32).to_be_bytes();
                for stream_or_connection in [id, 0] {
                    stream.write_all(&frame(WINDOW_UPDATE, 0, stream_or_connection, &length))?;
                }
            }
            _ => {}
        }
    }
}

/// By HTTP/1.1 its kernel says so: this much is read at a time.
const PIECE: usize = 16 << 10;
/// The proxy's kernel has all of it at once.
const BODY: usize = TIMES * PIECE;

fn http1(host: &Host) -> SocketAddr {
    let listener = host.listen(9001);
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(PIECE)
        .expect("a socket");
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || listener.incoming().flatten().try_for_each(serve_http1));
    address
}

fn serve_http1(stream: TcpStream) -> io::Result<()> {
    let mut read = BufReader::with_capacity(1, stream.try_clone()?);
    let mut line = String::new();
    while read.read_line(&mut line)? > 2 {
        line.clear();
    }
    for _ in 0..TIMES {
        thread::sleep(PAUSE);
        read.read_exact(&mut [0; PIECE])?;
    }
    (&stream).write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
}

/// Its client has nothing more to send.
#[test]
fn a_request_moves_while_its_endpoint_takes_it() {
    let place = Place::new();
    let clusters = [
        ("one", format!("endpoints: ['{}']", http1(&place.them))),
        ("two", format!("protocol: http2, endpoints: ['{}']", http2(&place.them))),
    ];
    let idle = format!(", timeout: 60s, idle_timeout: {}ms", IDLE.as_millis());
    let _proxy = place.start(&place.yaml(&clusters, &idle));
    // From now on the proxy knows how little is taken.
    assert_eq!(place.ask("/two/x", "").status, 200);
    for (name, length, status) in [("two", WINDOW * TIMES, 200), ("one", BODY, 204)] {
        let mut client = Client::connect(&place.client, place.ours());
        client.send(format!("POST /{name}/ HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        client.send(&vec![b'x'; length]);
        assert_eq!(client.answer(false).status, status, "{name}");
    }
}
