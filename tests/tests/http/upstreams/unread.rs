//! Answers that their clients do not read, on a connection that others use: written by hand, since a library's server sends no small
//! frames by itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use bytes::Bytes;
use http::Request;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use underpass_tests::{Host, wait};

use super::place::Place;
use crate::attacks::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame, read_frame};
use crate::streams;

/// RFC 7541, appendix A: `:status: 200` of the static table.
const OK: u8 = 0x88;
/// What the proxy bears of one answer that is not read, in frames of a byte (`ONE_STREAM`).
const FRAMES: usize = 128 << 10;

/// Answers the first stream of each connection by as many small frames as are borne, and ends it when it has answered another. Counts
/// connections.
fn start(host: &Host) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = host.listen(9001);
    let address = listener.local_addr().expect("a socket");
    let accepted = Arc::new(AtomicU32::new(0));
    let counted = accepted.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || serve(stream));
        }
    });
    (address, accepted)
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let (mut first, mut is_ended) = (None, false);
    loop {
        let (kind, flags, id, _) = read_frame(&stream)?;
        match (kind, first) {
            (SETTINGS, _) if flags == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            (HEADERS, None) => {
                first = Some(id);
                stream.write_all(&frame(HEADERS, END_HEADERS, id, &[OK]))?;
                stream.write_all(&frame(DATA, 0, id, b"x").repeat(FRAMES))?;
            }
            (HEADERS, Some(first)) => {
                stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &[OK]))?;
                if !std::mem::replace(&mut is_ended, true) {
                    stream.write_all(&frame(DATA, END_STREAM, first, &[]))?;
                }
            }
            _ => {}
        }
    }
}

fn get() -> Request<()> {
    Request::get("http://web.test/web/x").body(()).expect("a request")
}

/// Each of its frames costs the proxy more than a byte, but not the others their connection.
#[test]
fn a_client_that_reads_nothing_of_small_messages_is_no_hindrance_to_others() {
    let place = Place::new();
    let (address, accepted) = start(&place.them);
    let fields = format!("protocol: http2, endpoints: ['{address}']");
    let _proxy = place.start(&place.yaml(&[("web", fields)], ""));
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let stream = place.client.connect(place.ours()).expect("the proxy accepts");
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let handshake = h2::client::Builder::new()
            .initial_window_size(0)
            // It bears what it gets.
            .data_frame_budget(256 * FRAMES)
            .handshake::<_, Bytes>(stream);
        let (sender, mut connection) = handshake.await.expect("HTTP/2");
        let (reads, does_read) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => return,
                _ = does_read => {}
            }
            connection.set_initial_window_size(1 << 20).expect("a window");
            let _ = connection.await;
        });
        let (response, _) = sender
            .ready()
            .await
            .expect("room")
            .send_request(get(), true)
            .expect("a stream");
        let mut slow = response.await.expect("an answer").into_body();
        for _ in 0..3 {
            let seen = streams::ask(&place.client, place.ours(), get(), Bytes::new()).await;
            assert_eq!((seen.status, seen.is_whole), (200, true), "{seen:?}");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "they went by another connection");
        reads.send(()).expect("it is connected");
        let read = async {
            let mut length = 0;
            while let Some(bytes) = slow.data().await {
                let bytes = bytes.expect("a whole answer").len();
                slow.flow_control().release_capacity(bytes).expect("it was taken");
                length += bytes;
            }
            length
        };
        assert_eq!(tokio::time::timeout(wait::soon(), read).await, Ok(FRAMES));
    });
}
