//! One direction of the pump: what it holds, and how it reads and sends.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::buffer::{self, Buffer};
use crate::stream::{Received, Stream};

/// One direction's state.
#[derive(Default)]
pub(super) struct Direction {
    /// What the receiver would not take yet.
    pub(super) stuck: Option<Stuck>,
    pub(super) state: Reading,
    /// What is left to read is all here, the sender's FIN included.
    pub(super) sender_has_ended: bool,
    /// The end of what was sent waits in the receiver's socket for that FIN.
    pub(super) is_held: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    #[default]
    Open,
    /// The sender's FIN was read; the receiver is told when nothing is stuck.
    Ended,
    /// The FIN was passed on.
    Closed,
}

pub(super) struct Stuck {
    buffer: Buffer,
    written: usize,
    length: usize,
}

impl Stuck {
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let length = bytes.len();
        (length > 0).then(|| Stuck {
            buffer: bytes.into_boxed_slice(),
            written: 0,
            length,
        })
    }
}

impl Direction {
    /// Whether it holds nothing and has heard of no end.
    pub(super) fn is_clear(&self) -> bool {
        self.stuck.is_none() && self.is_open()
    }

    /// Bytes that it holds.
    pub(super) fn length(&self) -> usize {
        self.stuck.as_ref().map_or(0, |stuck| stuck.length - stuck.written)
    }

    /// Whether it has heard of no end.
    pub(super) fn is_open(&self) -> bool {
        self.state == Reading::Open && !self.sender_has_ended
    }

    /// Reads into a pooled buffer, which is then stuck until flushed. Nothing read is the end.
    pub(super) fn poll_fill(&mut self, from: &Stream, cx: &mut Context<'_>, was_reset: bool) -> Poll<io::Result<()>> {
        let mut buffer = buffer::take();
        // A reset socket has all that it will ever have, whatever the runtime has heard of it so far.
        let received = if was_reset {
            receive_rest(from, &mut buffer)
        } else {
            from.poll_receive(cx, &mut buffer)
        };
        let length = match received {
            Poll::Ready(Ok(received)) => {
                self.sender_has_ended = received.peer_has_ended;
                received.length
            }
            other => {
                buffer::give_back(buffer);
                return other.map_ok(|_| ());
            }
        };
        if length == 0 {
            buffer::give_back(buffer);
            self.state = Reading::Ended;
        } else {
            self.stuck = Some(Stuck {
                buffer,
                written: 0,
                length,
            });
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is stuck; with `hold`, so that it can travel with the FIN.
    pub(super) fn poll_flush(
        &mut self,
        to: &Stream,
        cx: &mut Context<'_>,
        hold: bool,
        count: impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        while let Some(stuck) = &mut self.stuck {
            let taken = ready!(to.poll_send(cx, &stuck.buffer[stuck.written..stuck.length], hold))?;
            self.is_held = hold;
            count(taken);
            stuck.written += taken;
            if stuck.written == stuck.length
                && let Some(done) = self.stuck.take()
            {
                buffer::give_back(done.buffer);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads once from a socket that was reset. Nothing more is an end like any other.
fn receive_rest(from: &Stream, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
    let length = loop {
        match rustix::net::recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break 0,
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    };
    // What follows is RST, which must not overtake what waits for a FIN.
    let peer_has_ended = false;
    Poll::Ready(Ok(Received { length, peer_has_ended }))
}
