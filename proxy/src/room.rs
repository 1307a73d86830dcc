//! How much a peer of HTTP/2 takes on a stream (RFC 9113, section 5.2).

use std::task::{Context, Poll, ready};

use bytes::Buf;
use h2::SendStream;

/// How many bytes may be sent now, at least one and not many more than `wanted`; none: nothing can be sent any more.
pub fn poll_room<B: Buf>(stream: &mut SendStream<B>, wanted: usize, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Some(room));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}
