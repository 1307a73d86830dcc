//! The end of a connection of HTTP/1.1 whose client may still be sending.
//!
//! A socket that is closed with bytes that nobody has read resets, and a reset takes from the client what it has not read yet: the answer to a request that was
//! answered before all of it had come. So the proxy says FIN and reads on, and throws away what it reads (RFC 9112, section 9.6).

use std::future::{Future, poll_fn};
use std::time::Duration;

use crate::stream::Stream;

/// A client that sends nothing for so long has had time to see the answer (Envoy's `delayed_close_timeout`).
const SILENCE: Duration = Duration::from_secs(1);
/// One that sends on is read for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is read at once, in bytes.
const PIECE: usize = 16 * 1024;

/// Says FIN, and waits for the client's, until the proxy is `hurried`.
pub async fn linger(socket: &Stream, hurried: impl Future<Output = ()>) {
    if socket.end().is_err() {
        // It is gone.
        return;
    }
    let reading = async {
        // Most clients have nothing to say: no memory for them.
        let mut piece = Vec::new();
        while let Ok(Ok(())) = tokio::time::timeout(SILENCE, poll_fn(|cx| socket.poll_readable(cx))).await {
            piece.resize(PIECE, 0);
            match tokio::time::timeout(SILENCE, socket.receive(&mut piece)).await {
                Ok(Ok(1..)) => {}
                _ => break,
            }
        }
    };
    tokio::select! {
        biased;
        _ = tokio::time::timeout(PATIENCE, reading) => {}
        () = hurried => {}
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    use tokio::time::Instant;

    use super::*;

    /// How long a client that says nothing is waited for.
    async fn waited(hurried: impl Future<Output = ()>) -> Duration {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = Stream::new(OwnedFd::from(socket)).unwrap();
        let began = Instant::now();
        linger(&socket, hurried).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_waited_for_until_the_proxy_is_hurried() {
        assert_eq!(waited(pending()).await.as_secs(), SILENCE.as_secs());
        let soon = SILENCE / 4;
        assert!(waited(tokio::time::sleep(soon)).await < SILENCE / 2);
    }
}
