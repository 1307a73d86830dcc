//! An endpoint of HTTP/2 that reads the end of a tunnel late. The proxy's client has gone by then, and so may not what it has sent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use underpass_tests::wait;

use super::broken::{DATA, END_HEADERS, END_STREAM, HEADERS, OK, SETTINGS, frame};
use super::place::Place;
use crate::client::Client;

/// RFC 9113, section 6.9.
const WINDOW_UPDATE: u8 = 8;
/// More than kernels keep for a connection.
const SENT: usize = 24 << 20;
/// Longer than a reset may take to be written, which once was what the end of a tunnel had too.
const LATE: Duration = Duration::from_secs(7);
/// When the proxy has read all of its client's bytes, so much is read on: what it had in hand is its codec's then, and more waits there.
const IN_HAND: usize = 200 << 10;

/// What came, and whether it ended.
type Came = (usize, bool);

/// Reads frames as they come, and counts what those of DATA carry.
struct Reader {
    stream: TcpStream,
    read: Vec<u8>,
    came: Came,
}

impl Reader {
    /// Reads some bytes; none is the end.
    fn more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 64 * 1024];
        let length = self.stream.read(&mut chunk)?;
        self.read.extend_from_slice(&chunk[..length]);
        while let Some((kind, flags, payload)) = self.next() {
            match kind {
                DATA => {
                    self.came.0 += payload;
                    self.came.1 |= flags & END_STREAM != 0;
                }
                SETTINGS if flags == 0 => self.stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
                HEADERS => {
                    self.stream.write_all(&frame(HEADERS, END_HEADERS, 1, &[OK]))?;
                    self.stream.write_all(&frame(DATA, END_STREAM, 1, &[]))?;
                }
                _ => {}
            }
        }
        Ok(length)
    }

    /// Kind, flags, and length of the next frame that is there.
    fn next(&mut self) -> Option<(u8, u8, usize)> {
        let head = self.read.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        (self.read.len() >= 9 + length).then(|| {
            self.read.drain(..9 + length);
            (kind, flags, length)
        })
    }
}

fn serve(mut stream: TcpStream, is_read: impl Fn() -> bool, tell: &Sender<Came>) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    // SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441).
    let window = 1u32 << 30;
    let settings = [&[0, 4][..], &window.to_be_bytes(), &[0, 8, 0, 0, 0, 1]].concat();
    stream.write_all(&frame(SETTINGS, 0, 0, &settings))?;
    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &window.to_be_bytes()))?;
    let mut reader = Reader {
        stream,
        read: Vec::new(),
        came: (0, false),
    };
    while !is_read() {
        reader.more()?;
        // Slower than the proxy.
        thread::sleep(Duration::from_millis(2));
    }
    let enough = reader.came.0 + IN_HAND;
    while reader.came.0 < enough {
        reader.more()?;
    }
    thread::sleep(LATE);
    while !reader.came.1 && reader.more().is_ok_and(|length| length > 0) {}
    let _ = tell.send(reader.came);
    Ok(())
}

/// Bytes that have come by the connection between these two, and that `at` has not read (proc(5), /proc/net/tcp).
fn unread(at: SocketAddr, from: SocketAddr) -> Option<usize> {
    let (SocketAddr::V4(at), SocketAddr::V4(from)) = (at, from) else {
        return None;
    };
    let written = |address: std::net::SocketAddrV4| {
        let number = u32::from_ne_bytes(address.ip().octets());
        format!("{number:08X}:{:04X}", address.port())
    };
    let ends = format!(" {} {} ", written(at), written(from));
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let line = table.lines().find(|line| line.contains(&ends))?;
    let queues = line.split_whitespace().nth(4)?;
    usize::from_str_radix(queues.split_once(':')?.1, 16).ok()
}

#[test]
fn the_tail_of_a_tunnel_has_as_long_as_its_reader_takes() {
    let place = Place::new();
    let listener = place.them.listen(9001);
    let endpoint = listener.local_addr().expect("a socket");
    let fields = format!("protocol: http2, endpoints: ['{endpoint}']");
    let _proxy = place.start(&place.yaml(&[("web", fields)], ", upgrades: [websocket]"));
    let (at, mut client) = (place.ours(), Client::connect(&place.client, place.ours()));
    let (is_sent, from) = (Arc::new(AtomicBool::new(false)), client.address());
    let (sent, (tell, told)) = (is_sent.clone(), channel());
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let is_read = || sent.load(Ordering::SeqCst) && unread(at, from).is_none_or(|unread| unread == 0);
        serve(stream, is_read, &tell)
    });
    client.send(b"GET /web/x HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    assert_eq!(client.answer(false).status, 101);
    client.send(&vec![7; SENT]);
    client.end();
    is_sent.store(true, Ordering::SeqCst);
    let came = told.recv_timeout(wait::soon() * 3).expect("the endpoint reads on");
    assert_eq!(came, (SENT, true));
    wait::eventually(wait::SOON, "it is logged", || {
        place.logged("\"response_flags\":\"-\"") == 1
    });
}
