//! Bytes that a tunnel has given to its connection, and word of how many the connection has taken.
//!
//! The codec keeps what the connection can't take yet, and forgets it when the stream is reset. Who wants to reset a stream *behind* its last
//! bytes has to know when they are gone; the codec doesn't say. So it is handed its bytes in a wrapper that notes each byte
//! as the codec takes it for the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::{Buf, Bytes};

/// How much of what was given has been taken.
#[derive(Debug, Default)]
pub struct Progress {
    taken: AtomicU64,
    waker: AtomicWaker,
}

impl Progress {
    /// How many bytes have been taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Ready once `given` bytes have been taken.
    pub fn poll_taken(&self, given: u64, cx: &mut Context<'_>) -> Poll<()> {
        let is_taken = || self.taken() >= given;
        if is_taken() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Taken between the look and the registration?
        if is_taken() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Bytes for a stream, of which there is word.
#[derive(Debug)]
pub struct Chunk {
    bytes: Bytes,
    progress: Arc<Progress>,
}

impl Chunk {
    /// `bytes` of the stream whose progress this is.
    pub fn new(bytes: Bytes, progress: &Arc<Progress>) -> Self {
        let progress = progress.clone();
        Self { bytes, progress }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.progress.taken.fetch_add(count as u64, Ordering::Release);
        if self.bytes.is_empty() {
            self.progress.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_last_byte_is_woken_by_it() {
        let progress = Arc::new(Progress::default());
        let mut chunk = Chunk::new(Bytes::from_static(b"abc"), &progress);
        chunk.advance(1);
        let waiting = poll_fn(|cx| progress.poll_taken(3, cx));
        let taking = async {
            tokio::task::yield_now().await;
            chunk.advance(2);
        };
        tokio::join!(waiting, taking);
        assert!(!chunk.has_remaining());
    }
}
