//! A connection that sends what several tasks have to say in one piece.
//!
//! The codec of HTTP/2 writes a frame as soon as it has one; the frames that follow it at once (a request's body after its head, trailers after a body,
//! windows that grow) come from other tasks. Each write is a system call, a segment, and a peer that wakes up. So what is little is kept until the
//! tasks that are ready now have had their turn.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept at most: a copy costs less than a write for each frame of HTTP/2 (16 KiB), and this is what TCP hands on in one piece.
const LITTLE: usize = 64 << 10;

/// Where one piece is so long, others like it follow.
const LONG: usize = 4 << 10;

thread_local! {
    /// What a core's connections keep in, one after the other: in most turns one is enough. A new one each time would grow piece by piece,
    /// and each time be copied.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The connection below the codec.
#[derive(Debug)]
pub struct Gathered<IO> {
    io: IO,
    kept: Vec<u8>,
    /// Of `kept`.
    written: usize,
    /// Whether others have had their turn since the first of it was kept.
    is_due: bool,
}

impl<IO: AsyncWrite + Unpin> Gathered<IO> {
    /// Gathers what is written to `io`.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            kept: Vec::new(),
            written: 0,
            is_due: false,
        }
    }

    /// Writes all that is kept.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.kept[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        if self.kept.capacity() > 0 {
            // A connection that is idle keeps nothing.
            let mut kept = std::mem::take(&mut self.kept);
            kept.clear();
            SPARE.set(kept);
        }
        (self.written, self.is_due) = (0, false);
        Poll::Ready(Ok(()))
    }

    /// Writes `parts` after what is kept, and says how much of `parts` was taken.
    fn poll_pass(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.kept.is_empty() {
            return Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        }
        let before = &self.kept[self.written..];
        let all: Vec<IoSlice<'_>> = [IoSlice::new(before)]
            .into_iter()
            .chain(parts.iter().map(|part| IoSlice::new(part)))
            .collect();
        let before = before.len();
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &all))?;
        if written < before {
            self.written += written;
            // There was room for some of it: either there is more, or somebody is told when there is.
            ready!(self.poll_drain(cx))?;
            return Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        }
        self.written = self.kept.len();
        ready!(self.poll_drain(cx))?;
        match written - before {
            // All room was for what was kept. Nothing taken would mean that nothing will ever be.
            0 => Pin::new(&mut self.io).poll_write_vectored(cx, parts),
            taken => Poll::Ready(Ok(taken)),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.written > 0 || self.kept.len() + length > LITTLE {
            return self.poll_pass(cx, parts);
        }
        if self.kept.capacity() == 0 {
            self.kept = SPARE.take();
        }
        if length >= LONG && self.kept.capacity() - self.kept.len() < length {
            // It will be full soon, and to grow is to copy what is there.
            let room = LITTLE - self.kept.len();
            self.kept.reserve_exact(room);
        }
        parts.iter().for_each(|part| self.kept.extend_from_slice(part));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() && !self.is_due {
            self.is_due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts what is written to it, and takes no more than `most` at a time.
    #[derive(Default)]
    struct Writes {
        writes: usize,
        most: usize,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.most);
            self.writes += 1;
            self.bytes.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let (before, most) = (self.bytes.len(), self.most);
            let all = parts.iter().flat_map(|part| part.iter().copied());
            self.bytes.extend(all.take(most));
            self.writes += 1;
            Poll::Ready(Ok(self.bytes.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_is_written_before_others_have_had_their_turn_is_one_write() {
        let mut gathered = Gathered::new(Writes {
            most: usize::MAX,
            ..Writes::default()
        });
        let mut looks = 0;
        poll_fn(|cx| {
            looks += 1;
            // As the codec does: it takes what there is whenever it is polled, and flushes.
            let write = Pin::new(&mut gathered).poll_write(cx, b"frame");
            assert!(matches!(write, Poll::Ready(Ok(5))));
            Pin::new(&mut gathered).poll_flush(cx)
        })
        .await
        .expect("written");
        assert_eq!(
            (looks, gathered.io.writes, &gathered.io.bytes[..]),
            (2, 1, &b"frameframe"[..])
        );
        assert_eq!(gathered.kept.capacity(), 0);
    }

    #[tokio::test]
    async fn however_little_is_taken_at_a_time_the_bytes_stay_in_order() {
        for most in [7, 1000, LITTLE, 3 * LITTLE] {
            let mut gathered = Gathered::new(Writes {
                most,
                ..Writes::default()
            });
            let bytes = pattern(5 * LITTLE);
            let (mut at, mut size) = (0, 1);
            while at < bytes.len() {
                let end = bytes.len().min(at + size);
                gathered.write_all(&bytes[at..end]).await.expect("written");
                if size % 3 == 0 {
                    gathered.flush().await.expect("flushed");
                }
                (at, size) = (end, size * 2 % (2 * LITTLE + 1) + 1);
            }
            gathered.shutdown().await.expect("shut down");
            assert!(gathered.io.bytes == bytes, "{most} at a time");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_is_slow_gets_everything() {
        let (near, mut far) = tokio::io::duplex(100);
        let bytes = pattern(3 * LITTLE);
        let sent = bytes.clone();
        let sender = tokio::spawn(async move {
            let mut gathered = Gathered::new(near);
            for chunk in sent.chunks(LITTLE - 1) {
                gathered.write_all(chunk).await.expect("written");
            }
            gathered.shutdown().await.expect("shut down");
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.expect("read");
        sender.await.expect("ends");
        assert!(received == bytes);
    }
}
