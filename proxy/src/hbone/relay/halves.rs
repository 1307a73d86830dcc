//! The two directions of the pump.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::super::READ;
use super::super::backlog::Backlog;
use super::super::tunnel::Tunnel;
use crate::stream::Stream;

/// Chunks that one direction moves before the other has its turn, as in `crate::relay`.
const CHUNKS_PER_TURN: usize = 8;

/// The least and the most that is read from a socket at once. Reading begins small and grows while reads fill their buffer, so that a
/// stream of small messages does not hold large buffers in the connection's queue.
const READS: (usize, usize) = (2 * 1024, READ);

/// What a tunnel has brought is sent together up to this, about a frame of the largest: many small frames that came together are one send.
const GATHERED: usize = 64 * 1024;

/// How far a direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Open,
    /// The sender's end was read; the receiver is told when nothing is stuck.
    Ended,
    /// The end was passed on.
    Closed,
}

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Sender,
    Receiver,
}

/// What a direction works with.
pub(super) struct Half<'a> {
    pub(super) socket: &'a Stream,
    pub(super) tunnel: &'a mut Tunnel,
    /// The sender was reset: read what is there, and its end is no end.
    pub(super) was_reset: bool,
    /// The other direction has ended: this one's end is the drop of the receiver.
    pub(super) is_last: bool,
    pub(super) count: &'a dyn Fn(usize),
}

impl Half<'_> {
    fn turns(&self) -> usize {
        if self.was_reset { usize::MAX } else { CHUNKS_PER_TURN }
    }
}

/// The other direction, and this core's other connections, have their turn.
fn another_turn(cx: &Context<'_>) -> Poll<Result<(), Failed>> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// From the socket to the tunnel. Ready when it has closed, or somebody failed.
pub(super) struct ToTunnel {
    state: State,
    /// What came with the request and has not been sent yet.
    early: Bytes,
    waits_for_room: bool,
    read_size: usize,
}

impl ToTunnel {
    pub(super) fn new(early: Vec<u8>) -> Self {
        Self {
            state: State::Open,
            early: early.into(),
            waits_for_room: false,
            read_size: READS.0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether nothing is read because there is no room for it.
    pub(super) fn is_stuck(&self) -> bool {
        self.waits_for_room
    }

    pub(super) fn poll(&mut self, half: &mut Half<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        for _ in 0..half.turns() {
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                // The end of what a reset socket had sent is not a FIN: the reset follows it.
                State::Ended if half.was_reset => return Poll::Ready(Ok(())),
                State::Ended => {
                    if !half.is_last && half.tunnel.end().is_err() {
                        return Poll::Ready(Err(Failed::Receiver));
                    }
                    self.state = State::Closed;
                }
                State::Open => ready!(self.poll_move(half, cx))?,
            }
        }
        another_turn(cx)
    }

    fn poll_move(&mut self, half: &mut Half<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let is_early = !self.early.is_empty();
        if !half.was_reset && !is_early {
            self.waits_for_room = false;
            match half.socket.poll_readable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Sender)),
                Poll::Pending => {
                    half.tunnel.give_back_room();
                    return Poll::Pending;
                }
            }
        }
        self.waits_for_room = true;
        let room = ready!(half.tunnel.poll_room(self.read_size, cx)).map_err(|_| Failed::Receiver)?;
        self.waits_for_room = false;
        let bytes = if is_early {
            self.early.split_to(room.min(self.early.len()))
        } else {
            ready!(self.poll_read(room, half, cx))?
        };
        if bytes.is_empty() {
            self.state = State::Ended;
            half.tunnel.give_back_room();
            return Poll::Ready(Ok(()));
        }
        let length = bytes.len();
        half.tunnel.send(bytes).map_err(|_| Failed::Receiver)?;
        (half.count)(length);
        Poll::Ready(Ok(()))
    }

    /// Reads once; nothing is the end.
    fn poll_read(&mut self, room: usize, half: &mut Half<'_>, cx: &mut Context<'_>) -> Poll<Result<Bytes, Failed>> {
        let size = room.min(self.read_size);
        let mut buffer = Vec::with_capacity(size);
        let read = if half.was_reset {
            Poll::Ready(half.socket.receive_rest(&mut buffer))
        } else {
            half.socket
                .poll_append(cx, &mut buffer)
                .map_ok(|received| received.length)
        };
        match read {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Sender)),
            Poll::Pending => {
                half.tunnel.give_back_room();
                return Poll::Pending;
            }
        }
        let length = buffer.len();
        if length == self.read_size {
            self.read_size = (2 * self.read_size).min(READS.1);
        } else if length < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(READS.0);
        }
        Poll::Ready(Ok(buffer.into()))
    }
}

/// From the tunnel to the socket. Ready when it has closed, or somebody failed.
#[derive(Default)]
pub(super) struct ToSocket {
    state: State,
    /// What the socket would not take yet; the tunnel's window stays smaller by as much.
    stuck: Backlog,
    /// The tunnel has failed behind what is stuck.
    has_failed: bool,
}

impl ToSocket {
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the socket takes nothing.
    pub(super) fn is_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    pub(super) fn poll(&mut self, half: &mut Half<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        for _ in 0..half.turns() {
            while self.is_stuck() {
                let (part, more_follows) = (self.stuck.front(), self.stuck.front().len() < self.stuck.len());
                let Poll::Ready(sent) = half.socket.poll_send(cx, part, more_follows) else {
                    self.stuck.keep();
                    self.gather(usize::MAX, half, cx);
                    return Poll::Pending;
                };
                let sent = sent.map_err(|_| Failed::Receiver)?;
                (half.count)(sent);
                self.stuck.advance(sent);
                half.tunnel.taken(sent);
            }
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                _ if self.has_failed => return Poll::Ready(Err(Failed::Sender)),
                State::Ended if half.was_reset => return Poll::Ready(Ok(())),
                State::Ended => {
                    if !half.is_last && half.socket.end().is_err() {
                        return Poll::Ready(Err(Failed::Receiver));
                    }
                    self.state = State::Closed;
                }
                State::Open => {
                    let received = ready!(half.tunnel.poll_receive(cx));
                    self.take(received);
                    self.gather(GATHERED, half, cx);
                }
            }
        }
        another_turn(cx)
    }

    /// Reads what is there, up to so many bytes in all, so that the codec has no frames to keep. While the socket takes nothing, the peer's window
    /// says how much that can be.
    fn gather(&mut self, most: usize, half: &mut Half<'_>, cx: &mut Context<'_>) {
        while self.stuck.len() < most && self.state == State::Open && !self.has_failed {
            let Poll::Ready(received) = half.tunnel.poll_receive(cx) else {
                return;
            };
            self.take(received);
        }
    }

    fn take(&mut self, received: Option<Result<Bytes, h2::Error>>) {
        match received {
            Some(Ok(bytes)) => self.stuck.push(bytes),
            Some(Err(_)) => self.has_failed = true,
            None => self.state = State::Ended,
        }
    }
}
