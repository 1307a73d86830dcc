//! An HTTP/2 server that answers the first request of each connection and goes when the next one comes, without having looked at it: written by hand, since a
//! library's server would look.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use underpass_tests::Host;

use crate::attacks::frames::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, frame};

const WHOLE: u8 = END_STREAM | END_HEADERS;
/// RFC 7541, appendix A: `:status: 200` of the static table.
const OK: u8 = 0x88;
/// Connections that are all answered at once, so that none is used twice before all are there.
const TOGETHER: usize = 6;

pub(crate) struct Going {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicU32>,
}

impl Going {
    pub(crate) fn start(host: &Host, port: u16) -> Self {
        let listener = host.listen(port);
        let address = listener.local_addr().expect("a socket");
        let accepted = Arc::new(AtomicU32::new(0));
        let counted = accepted.clone();
        let together = Arc::new(Barrier::new(TOGETHER));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::SeqCst) as usize;
                let together = (number < TOGETHER).then(|| together.clone());
                thread::spawn(move || serve(stream, together.as_deref()));
            }
        });
        Self { address, accepted }
    }

    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, together: Option<&Barrier>) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut answered = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize])?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            SETTINGS if head[4] == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
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
