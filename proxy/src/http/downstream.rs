//! What a client's requests come by: a connection of its own, or a stream of HBONE.
//!
//! A connection has its codec built anew as often as it is used again (`parking`); a stream has one codec, until its end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::either::Either;

use super::tunnelled::{Carried, Tunnelled};
use super::wire::{Moved, Wire};
use crate::hbone::tunnel::Tunnel;
use crate::socket;
use crate::stream::Stream;

/// What a client came by, before it is known what it speaks.
#[derive(Debug)]
pub enum Downstream {
    /// Its own connection.
    Socket(Stream),
    /// A stream that it opened.
    Tunnel(Box<Tunnel>),
}

/// The same while it is served.
#[derive(Debug)]
pub enum Way {
    /// A socket, which codecs share one after the other.
    Socket(Arc<Stream>),
    /// A stream, until its codec has it.
    Tunnel(Mutex<Option<Box<Tunnelled>>>),
}

impl Way {
    /// That of `downstream`, which counts what it moves as `moved`.
    pub fn new(downstream: Downstream, moved: &Arc<Moved>) -> Self {
        match downstream {
            Downstream::Socket(socket) => Self::Socket(Arc::new(socket)),
            Downstream::Tunnel(tunnel) => {
                Self::Tunnel(Mutex::new(Some(Box::new(Tunnelled::of_client(*tunnel, moved.clone())))))
            }
        }
    }

    /// What it was, if no codec has it.
    pub fn into_downstream(self) -> Option<Downstream> {
        match self {
            Self::Socket(socket) => Arc::into_inner(socket).map(Downstream::Socket),
            Self::Tunnel(tunnel) => {
                let tunnelled = tunnel.into_inner().unwrap_or_else(PoisonError::into_inner)?;
                tunnelled.into_tunnel().map(Box::new).map(Downstream::Tunnel)
            }
        }
    }

    /// Has it end in a way that does not look complete, when it is let go. A stream that no codec has ended does so by itself.
    pub fn reset_on_close(&self) {
        if let Self::Socket(socket) = self {
            socket::reset_on_close(&**socket);
        }
    }

    /// The socket, if it is one.
    pub fn socket(&self) -> Option<&Arc<Stream>> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Tunnel(_) => None,
        }
    }

    /// For a codec, with what has been read of it.
    pub fn carry(&self, early: Bytes, moved: &Arc<Moved>) -> Carried {
        match self {
            Self::Socket(socket) => Either::Left(Wire::new(socket.clone(), early, moved.clone())),
            Self::Tunnel(tunnel) => {
                let taken = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
                let mut tunnelled = taken.unwrap_or_else(|| Box::new(Tunnelled::gone()));
                tunnelled.put_back(early);
                Either::Right(tunnelled)
            }
        }
    }

    /// Ready when there is something to read.
    ///
    /// # Errors
    /// When there never will be.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => socket.poll_readable(cx),
            Self::Tunnel(tunnel) => match &mut *tunnel.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(tunnelled) => tunnelled.poll_readable(cx),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    /// Reads at least one byte, or nothing at its end.
    ///
    /// # Errors
    /// When it is broken.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_receive(cx, buffer)).await
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_receive(cx, buffer).map_ok(|received| received.length),
            Self::Tunnel(tunnel) => {
                let mut tunnel = tunnel.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(tunnelled) = &mut *tunnel else {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                };
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(tunnelled.as_mut()).poll_read(cx, &mut buffer))?;
                Poll::Ready(Ok(buffer.filled().len()))
            }
        }
    }
}
