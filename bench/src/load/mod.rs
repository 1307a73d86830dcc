//! The load: what one sample does, and the client and server processes that do it.
//!
//! Both ends are ours, so every byte is known; they are processes of their own, bound to their cores, and cost the same
//! whatever is between them. Every socket has a time-out: a proxy that hangs fails the sample instead of hanging the bench.

mod answers;
pub(crate) mod client;
mod connection;
pub(crate) mod hold;
pub(crate) mod programs;
pub(crate) mod requests;
pub(crate) mod serve;
pub(crate) mod steady;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::results::Params;

/// Size of a write in the streaming scenario.
pub(crate) const WRITE_SIZE: usize = 64 * 1024;
/// Size of a read in the streaming scenario.
pub(crate) const READ_SIZE: usize = 256 * 1024;
/// Bytes each way on a connection of the connecting scenario.
pub(crate) const GREETING_SIZE: usize = 64;
/// Longest that one read, write or connect may take.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// Which way a stream flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direction {
    ClientToServer,
    ServerToClient,
}

/// What a sample does; told to the client and the server process as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    /// One connection, one message of `size` bytes there and back at a time.
    RoundTrip { size: usize },
    /// One connection, written to as fast as it goes.
    Stream { direction: Direction },
    /// `concurrency` times in parallel: connect, a small round trip, close.
    Connect { concurrency: usize },
    /// A program of others and its server.
    Program { program: programs::Program },
    /// HTTP requests, by programs of others.
    Requests { requests: requests::Requests },
}

impl Work {
    /// Scenario that this is a case of.
    pub(crate) fn scenario(self) -> &'static str {
        match self {
            Work::RoundTrip { .. } => "l4-rtt",
            Work::Stream { .. } => "l4-stream",
            Work::Connect { .. } => "l4-connect",
            Work::Program { .. } => "l4-programs",
            Work::Requests { requests } => requests.scenario(),
        }
    }

    /// What sets this case apart from others of its scenario.
    pub(crate) fn params(self) -> Params {
        match self {
            Work::RoundTrip { size } => Params::new().with("size", size as u64),
            Work::Stream {
                direction: Direction::ClientToServer,
            } => Params::new().with("direction", "client-to-server"),
            Work::Stream {
                direction: Direction::ServerToClient,
            } => Params::new().with("direction", "server-to-client"),
            Work::Connect { concurrency } => Params::new().with("concurrency", concurrency as u64),
            Work::Program { program } => Params::new().with("program", program.name()),
            Work::Requests { requests } => requests.params(),
        }
    }

    /// What our server has to do for it.
    pub(crate) fn service(self) -> Option<serve::Service> {
        Some(match self {
            Work::RoundTrip { size } => serve::Service::Echo { size },
            Work::Stream {
                direction: Direction::ClientToServer,
            } => serve::Service::Sink,
            Work::Stream {
                direction: Direction::ServerToClient,
            } => serve::Service::Source,
            Work::Connect { .. } => serve::Service::AnswerOnce { size: GREETING_SIZE },
            Work::Requests { .. } => serve::Service::Answers,
            Work::Program { .. } => return None,
        })
    }
}

/// What a client process prints when it is done, as one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Figures of the measured window.
    pub(crate) figures: Vec<Figure>,
    /// Round trips or connections made, the warm-up included: what a proxy's CPU time is divided by.
    pub(crate) operations: u64,
    /// Bytes carried, the warm-up included.
    pub(crate) bytes: u64,
    /// CPU seconds that the client itself used.
    pub(crate) client_cpu_s: f64,
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
}

impl Figure {
    pub(crate) fn new(metric: &str, unit: &str, value: f64) -> Figure {
        Figure {
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            value,
        }
    }
}

/// CPU seconds, user and system, of this process or of those of its children that have been waited for.
fn cpu_seconds(of: UsageWho) -> Result<f64> {
    let usage = getrusage(of)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(microseconds as f64 / 1e6)
}

/// Connects with NODELAY and time-outs, as every connection of the bench is made.
fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, SOCKET_TIMEOUT).with_context(|| format!("connecting to {target}"))?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    Ok(())
}
