//! HTTP/2 servers that go, or refuse, without having looked at a request: written by hand, since a library's server would look.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use underpass_tests::Host;

use crate::attacks::frames::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame, read_frame};

const WHOLE: u8 = END_STREAM | END_HEADERS;
/// RFC 7541, appendix A: `:status: 200` of the static table.
const OK: u8 = 0x88;
/// RFC 9113, section 7.
const REFUSED_STREAM: u32 = 7;
/// Connections that are all answered at once, so that none is used twice before all are there.
const TOGETHER: usize = 6;

/// When a server goes from a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goes {
    /// When the second request comes; the first one is answered.
    AtTheSecond,
    /// From every other connection, the first one too, right behind its SETTINGS.
    AtOnceEveryOther,
    /// From each.
    AtOnce,
    /// It stays, and refuses whatever comes by every other connection, the first one too.
    RefusesEveryOther,
    /// It refuses whatever comes.
    Refuses,
}

pub(crate) struct Going {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicU32>,
}

impl Going {
    pub(crate) fn start(host: &Host, port: u16, goes: Goes) -> Self {
        let listener = host.listen(port);
        let address = listener.local_addr().expect("a socket");
        let accepted = Arc::new(AtomicU32::new(0));
        let counted = accepted.clone();
        let together = Arc::new(Barrier::new(TOGETHER));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::SeqCst) as usize;
                let is_together = number < TOGETHER && goes == Goes::AtTheSecond;
                let together = is_together.then(|| together.clone());
                thread::spawn(move || match goes {
                    Goes::AtOnceEveryOther if number.is_multiple_of(2) => go(stream),
                    Goes::AtOnce => go(stream),
                    Goes::RefusesEveryOther => serve(stream, None, number.is_multiple_of(2)),
                    Goes::Refuses => serve(stream, None, true),
                    Goes::AtTheSecond | Goes::AtOnceEveryOther => serve(stream, together.as_deref(), false),
                });
            }
        });
        Self { address, accepted }
    }

    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Says that it goes before it has read anything, and reads until the client has gone.
fn go(mut stream: TcpStream) -> io::Result<()> {
    let words = [frame(SETTINGS, 0, 0, &[]), frame(GOAWAY, 0, 0, &[0; 8])].concat();
    stream.write_all(&words)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

fn serve(mut stream: TcpStream, together: Option<&Barrier>, refuses: bool) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut answered = 0;
    loop {
        let (kind, flags, id, _) = read_frame(&stream)?;
        match kind {
            SETTINGS if flags == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            HEADERS if refuses => stream.write_all(&frame(RST_STREAM, 0, id, &REFUSED_STREAM.to_be_bytes()))?,
            HEADERS if answered == 0 => {
                answered = id;
                if let Some(together) = together {
                    together.wait();
                }
                stream.write_all(&frame(HEADERS, WHOLE, id, &[OK]))?;
            }
            HEADERS => {
                let mut content = answered.to_be_bytes().to_vec();
                content.extend([0; 4]);
                return stream.write_all(&frame(GOAWAY, 0, 0, &content));
            }
            _ => {}
        }
    }
}
