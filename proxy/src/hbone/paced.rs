//! A connection that gives way to its streams.
//!
//! The codec reads as long as there is something to read, and its streams, which are other tasks, get nothing of it meanwhile: a peer that sends fast would
//! have it keep all that came. So after a while there seems to be nothing more, until those that were woken by what came have had their turn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read in one turn: some 13 000 of the smallest frames, of which the codec may keep [`FRAMES_KEPT`](super::FRAMES_KEPT).
const TURN: usize = 128 << 10;

/// The connection below the codec.
#[derive(Debug)]
pub struct Paced<IO> {
    io: IO,
    /// Since the last pause.
    read: usize,
}

impl<IO> Paced<IO> {
    /// Paces `io`.
    pub fn new(io: IO) -> Self {
        Self { io, read: 0 }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= TURN {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buffer);
        match outcome {
            Poll::Ready(_) => self.read += buffer.filled().len() - before,
            Poll::Pending => self.read = 0,
        }
        outcome
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_source_without_end_pauses_and_goes_on() {
        let mut paced = Paced::new(tokio::io::repeat(1));
        let (mut read, mut pauses, mut bytes) = (0, 0, [0; 4096]);
        while read < 10 * TURN {
            read += poll_fn(|cx| {
                let mut buffer = ReadBuf::new(&mut bytes);
                let outcome = Pin::new(&mut paced).poll_read(cx, &mut buffer);
                pauses += usize::from(outcome.is_pending());
                outcome.map_ok(|()| buffer.filled().len())
            })
            .await
            .unwrap();
        }
        assert_eq!(pauses, 9);
    }
}
