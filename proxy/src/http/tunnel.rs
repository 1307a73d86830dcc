//! What a request becomes when both ends have agreed to speak something else: bytes, both ways.
//!
//! ```text
//!  client: HTTP/1.1 after 101 or CONNECT, or a stream of HTTP/2 ─ Pump ─ endpoint: HTTP/1.1 after 101 or CONNECT, TCP, or a stream of HTTP/2
//! ```
//!
//! What a client of a waypoint sends that is no HTTP is moved by the same pump ([`carry`]): from its stream of HBONE to whatever its endpoint is reached by.
//!
//! * **It has an owner.** Whoever serves the client's connection (or stream) runs it, and has it end by dropping it: a policy that comes to deny, a
//!   client that goes, a drain's deadline.
//! * **It ends complete only if both have finished.** FIN and END_STREAM stand for each other; whatever else ends it resets both sides (`End`'s
//!   drop): RST, or RST_STREAM with CANCEL (RFC 8441, section 5), for CONNECT with CONNECT_ERROR (RFC 9113, section 8.5).
//! * **The last bytes of a side that breaks off are passed on**: whoever takes nothing more, or is gone, may have said why. The other has [`FAREWELL`] to
//!   go on taking them.
//! * **One that does not move ends** after the route's `idle_timeout`; the tail of one that is complete is a part of it until the endpoint's kernel has it.
//! * **Bytes are counted when the receiver's side has taken them**, and nothing is read before that: each side feels the other's slowness.

mod end;
mod pump;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;
use tokio::time::Instant;

pub use end::End;
use pump::Pump;

use super::Broken;
use super::download::lasted;
use super::flags::Flags;
use super::forward::Holds;
use super::idle::Activity;
use super::pool::Lease;
use super::record::Record;
use crate::stream::Stream as Socket;
use crate::telemetry::RequestCounts;

/// How long what one side has said before it broke off may stand still on its way to the other.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a tunnel ended before both sides had finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broke {
    /// The client reset it, or is gone.
    #[error("the client broke off")]
    Client,
    /// The endpoint reset it, or is gone.
    #[error("the endpoint broke off")]
    Endpoint,
    /// Nothing moved.
    #[error("nothing moved for too long")]
    Idle,
    /// The client has not taken what the endpoint had sent before it ended.
    #[error("the client does not take the rest")]
    Stalled,
    /// It lasted too long.
    #[error("it lasted too long")]
    Lasted,
    /// It lasted longer than a stream to its cluster may.
    #[error("it lasted longer than a stream to its cluster may")]
    StreamLasted,
}

/// Resolves when the kernel has seen `socket` fail, whether or not anybody reads it.
async fn reset(socket: Option<Arc<Socket>>) {
    match socket {
        Some(socket) => socket.failed().await,
        None => std::future::pending().await,
    }
}

/// Who counts what is moved, as soon as the receiver's side has taken it.
pub trait Account {
    /// So many bytes more went from the client to the endpoint.
    fn up(&mut self, bytes: usize);
    /// And from the endpoint to the client.
    fn down(&mut self, bytes: usize);
}

/// The account of a request.
struct OfRequest<'r> {
    record: &'r mut Record,
    counts: Arc<RequestCounts>,
}

impl Account for OfRequest<'_> {
    fn up(&mut self, bytes: usize) {
        self.record.tunneled += bytes as u64;
        self.counts.tunnel_received(bytes as u64);
    }

    fn down(&mut self, bytes: usize) {
        self.record.sent += bytes as u64;
        self.counts.tunnel_sent(bytes as u64);
    }
}

/// How a tunnel ends before its end.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long it may do nothing; none: no limit.
    pub idle_timeout: Option<Duration>,
    /// When it has to have ended, whatever moves; none: no limit.
    pub lasts_until: Option<Instant>,
    /// The same by what its cluster says of one stream.
    pub stream_until: Option<Instant>,
    /// How long a client may leave untaken what its endpoint has sent before it ended: nobody else keeps it open then. None: no limit.
    pub stalled: Option<Duration>,
    /// What a peer gets to know of a reset.
    pub reason: Reason,
}

impl Terms {
    async fn limit(&self, running: impl Future<Output = Result<(), Broke>>, activity: &Activity) -> Result<(), Broke> {
        tokio::select! {
            biased;
            result = running => result,
            () = activity.ceased(self.idle_timeout) => Err(Broke::Idle),
            why = lasted(self.lasts_until, self.stream_until) => Err(match why {
                Broken::StreamLasted => Broke::StreamLasted,
                _ => Broke::Lasted,
            }),
        }
    }
}

/// Moves a connection's bytes until both sides have finished. Both ends are then told of it, or reset, by being dropped.
///
/// # Errors
/// When it ends before.
pub async fn carry(
    client: &mut End,
    endpoint: &mut End,
    terms: &Terms,
    account: &mut impl Account,
) -> Result<(), Broke> {
    (client.reason, endpoint.reason) = (terms.reason, terms.reason);
    let activity = Activity::begin();
    let running = pump(client, endpoint, account, (terms, &activity));
    let result = terms.limit(running, &activity).await;
    (client.is_complete, endpoint.is_complete) = (result.is_ok(), result.is_ok());
    result
}

/// A request that has become one: what goes on, and its account.
#[derive(Debug)]
pub struct Tunnel {
    endpoint: End,
    terms: Terms,
    /// Closed when it ends.
    record: Box<Record>,
    lease: Lease,
    holds: Holds,
}

impl Tunnel {
    /// To `endpoint`, which is reached by `lease`; `holds` is what its request has of the cluster's limits, and `record` its account.
    pub fn new(endpoint: End, terms: Terms, record: Box<Record>, lease: Lease, holds: Holds) -> Self {
        Self {
            endpoint,
            terms,
            record,
            lease,
            holds,
        }
    }

    /// Moves bytes until both sides have finished.
    ///
    /// # Errors
    /// When it ends before: both ends are reset.
    pub async fn run(self: Box<Self>, mut client: End) -> Result<(), Broke> {
        let Tunnel {
            mut endpoint,
            terms,
            mut record,
            mut lease,
            holds: _holds,
        } = *self;
        (client.reason, endpoint.reason) = (terms.reason, terms.reason);
        let activity = Activity::begin();
        let running = async {
            let counts = record.counts();
            let mut account = OfRequest {
                record: &mut record,
                counts,
            };
            let moved = pump(&mut client, &mut endpoint, &mut account, (&terms, &activity)).await;
            if moved.is_ok() {
                (client.is_complete, endpoint.is_complete) = (true, true);
                drop(endpoint);
                // Of the endpoint's connection, the codec may have the tail yet.
                lease.flushed(&activity).await;
            }
            moved
        };
        let result = terms.limit(running, &activity).await;
        match result {
            Ok(()) => record.is_complete = true,
            // Or the proxy has ended its connection.
            Err(Broke::Client) => record.lost_client(),
            Err(Broke::Endpoint) => record.flags.add(Flags::UPSTREAM_CLOSED),
            Err(Broke::Idle | Broke::Stalled) => record.flags.add(Flags::IDLE),
            Err(Broke::Lasted) => record.broke(Broken::Lasted),
            Err(Broke::StreamLasted) => record.broke(Broken::StreamLasted),
        }
        result
    }
}

/// Moves bytes until both have finished, or one has broken off and the other's kernel has what it had said before.
async fn pump(
    client: &mut End,
    endpoint: &mut End,
    account: &mut impl Account,
    (terms, activity): (&Terms, &Activity),
) -> Result<(), Broke> {
    let mut pump = Pump::new(terms.stalled);
    let mut resets = (pin!(reset(client.socket())), pin!(reset(endpoint.socket())));
    let moved = poll_fn(|cx| pump.poll(client, endpoint, &mut resets, (&mut *account, activity), cx));
    let moved = moved.await;
    match moved {
        Err(Broke::Client) if !pump.is_stuck() => endpoint.delivered().await,
        Err(Broke::Endpoint) if !pump.is_stuck() => client.delivered().await,
        _ => {}
    }
    moved
}
