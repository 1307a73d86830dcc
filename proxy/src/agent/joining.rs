//! Moving flows to the kernel, as proxies ask for it.
//!
//! A proxy hands over its two sockets of a flow: the descriptors prove that they are its own, and their addresses say which sockets of
//! applications are at their other ends. Those are looked for where they must be: in the enrolled pod that has the address, else in the
//! namespace of the proxy's own socket. Whatever else could be at the other end is not on this node, or not known to be.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use underpass_ebpf::netns_cookie;
use underpass_ebpf::tier::{JoinRequest, NotJoined, Side, Ticket, Tier};

use super::namespace::Namespace;
use super::proxies::Namespaces;
use crate::handover::{self, FromAgent};
use crate::socket;

/// What the kernel side does for it, as a trait: unit tests put a recorder in its place.
pub trait Joiner: Send + Sync + fmt::Debug {
    /// Moves a flow to the kernel.
    ///
    /// # Errors
    /// When it stays as it was.
    fn join(&self, request: &JoinRequest<'_>) -> Result<Ticket, NotJoined>;
    /// Notes that a flow has ended.
    fn leave(&self, ticket: Ticket);
    /// Why programs that read by splice(2) are not noticed, if they are not.
    fn blind(&self) -> Option<String>;
    /// What proxies work with: the map `FLOWS` and the program `measure`.
    fn descriptors(&self) -> [BorrowedFd<'_>; 2];
}

impl Joiner for Tier {
    fn join(&self, request: &JoinRequest<'_>) -> Result<Ticket, NotJoined> {
        Tier::join(self, request)
    }

    fn leave(&self, ticket: Ticket) {
        Tier::leave(self, ticket);
    }

    fn blind(&self) -> Option<String> {
        self.is_blind_to_splicing().map(ToString::to_string)
    }

    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.flows_fd(), self.measure_fd()]
    }
}

/// The kernel tier, or why there is none.
pub type TierOrReason = Result<Arc<dyn Joiner>, String>;

/// Serves proxies' wishes to have flows moved.
#[derive(Debug)]
pub struct Joining {
    tier: TierOrReason,
    namespaces: Arc<Namespaces>,
    own: Arc<Namespace>,
    own_cookie: u64,
}

impl Joining {
    /// For flows between the pods of `namespaces`, and within the calling thread's own network namespace.
    ///
    /// # Errors
    /// When the own namespace cannot be looked at.
    pub fn new(tier: TierOrReason, namespaces: Arc<Namespaces>) -> io::Result<Self> {
        let own = Namespace::of(File::open("/proc/thread-self/ns/net")?.into())?;
        let own = own.ok_or_else(|| io::Error::other("/proc/thread-self/ns/net is no network namespace"))?;
        let probe = socket::tcp_socket(([127, 0, 0, 1], 0).into())?;
        Ok(Self {
            tier,
            namespaces,
            own: Arc::new(own),
            own_cookie: netns_cookie(probe.as_fd())?,
        })
    }

    /// The kernel tier, or why there is none.
    pub fn tier(&self) -> Result<&dyn Joiner, &str> {
        self.tier.as_deref().map_err(String::as_str)
    }

    /// The answer to `Join`.
    pub fn answer(&self, id: u64, limit: u32, sockets: Vec<OwnedFd>) -> FromAgent {
        let outcome = match (self.tier(), <[OwnedFd; 2]>::try_from(sockets)) {
            (Ok(tier), Ok([downstream, upstream])) => self.join(tier, downstream.as_fd(), upstream.as_fd(), limit),
            (Err(_), _) => Err(refusal("tier_off", None, false)),
            (Ok(_), Err(_)) => Err(refusal("protocol", None, false)),
        };
        match outcome {
            Ok(Ticket { index, generation }) => FromAgent::Joined { id, index, generation },
            Err(Refusal { reason, side, again }) => FromAgent::NotJoined {
                id,
                reason: reason.to_owned(),
                side,
                again,
            },
        }
    }

    /// Notes that a flow has ended.
    pub fn leave(&self, ticket: Ticket) {
        if let Ok(tier) = self.tier() {
            tier.leave(ticket);
        }
    }

    fn join(
        &self,
        tier: &dyn Joiner,
        downstream: BorrowedFd<'_>,
        upstream: BorrowedFd<'_>,
        limit: u32,
    ) -> Result<Ticket, Refusal> {
        let not_local = |side| move || refusal("not_local", Some(side), false);
        let client = self.namespace_of_peer(downstream);
        let client = client.ok_or_else(not_local(handover::Side::Client))?;
        let server = self.namespace_of_peer(upstream);
        let server = server.ok_or_else(not_local(handover::Side::Server))?;
        let request = JoinRequest {
            downstream,
            upstream,
            client_netns: client.as_fd(),
            server_netns: server.as_fd(),
            limit,
            variant: None,
        };
        tier.join(&request).map_err(|not_joined| {
            tracing::debug!(%not_joined, "a flow stays with the proxy");
            refusal(
                not_joined.reason(),
                not_joined.side().map(side),
                not_joined.is_passing(),
            )
        })
    }

    /// The namespace in which the other end of a connected socket is, if it is on this node.
    fn namespace_of_peer(&self, socket: BorrowedFd<'_>) -> Option<Arc<Namespace>> {
        let peer = SocketAddr::try_from(rustix::net::getpeername(socket).ok()??).ok()?;
        let address = socket::canonical(peer).ip();
        if let Some(namespace) = self.namespaces.at(address) {
            return Some(namespace);
        }
        let cookie = netns_cookie(socket).ok()?;
        match cookie == self.own_cookie {
            true => Some(self.own.clone()),
            false => self.namespaces.get(cookie),
        }
    }
}

struct Refusal {
    reason: &'static str,
    side: Option<handover::Side>,
    again: bool,
}

fn refusal(reason: &'static str, side: Option<handover::Side>, again: bool) -> Refusal {
    Refusal { reason, side, again }
}

fn side(side: Side) -> handover::Side {
    match side {
        Side::Client => handover::Side::Client,
        Side::Server => handover::Side::Server,
    }
}
