//! The kernel tier: the bytes of an allowed connection go from the sender's socket into the receiver's queue.
//!
//! Four sockets make a flow: A, the client's, and PA, the proxy's towards it; H, the proxy's towards the server, and B,
//! the server's. They are *joined* ([`Tier::join`], by the agent) when the proxy has handed on all that it read. From
//! then on each of the two directions is *armed* or not, by the proxy, through memory that it shares with the programs
//! ([`FlowMemory`]).
//!
//! The one idea: a message may pass by the proxy only when everything that its sender sent before is already in the
//! receiver's queue. What the sender has given to TCP is known (`write_seq`), what the proxy has handed on it counts
//! itself, and a joined receiver gets bytes by redirect only, so that its queue has one order. Whenever the two numbers
//! differ, or the receiver's queue is at the limit, or anything is in doubt, the message takes TCP to the proxy, like
//! those before it. Nothing else is needed to take a flow back.
//!
//! ```text
//! agent   Tier ── join(PA, H) ──> Ticket                    (programs `join`, `measure`; maps SOCKS, WAYS, FLOWS)
//! proxy   FlowMemory ── flow(Ticket) ──> JoinedFlow: arm, handed_on, queued, tally      (FLOWS, mapped; `measure` run by descriptor)
//! kernel  gate on each send of A and B; follow and setsockopt disarm
//! ```

mod agent;
mod btf;
mod flow;
mod join;
mod memory;
mod not_joined;
mod places;
mod self_test;

pub use agent::Tier;
pub use flow::{FlowMemory, JoinedFlow, Tally};
pub use join::JoinRequest;
pub use not_joined::NotJoined;
pub use self_test::{SelfTest, Trial, self_test};
pub use underpass_ebpf_abi::tier::{Outcome, note};

use underpass_ebpf_abi::tier as abi;

pub(crate) use agent::end_all;
pub(crate) use btf::offsets;

/// A joined flow: its place in the shared memory, and which of those that had the place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The place.
    pub index: u32,
    /// Which flow.
    pub generation: u32,
}

impl Ticket {
    fn id(self) -> abi::FlowId {
        abi::FlowId {
            index: self.index,
            generation: self.generation,
        }
    }
}

/// Which application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that connected to the proxy.
    Client,
    /// The one that the proxy connected to.
    Server,
}

impl Side {
    /// `client` or `server`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    Out,
    /// From the server to the client.
    In,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Out, Self::In];

    fn index(self) -> usize {
        match self {
            Self::Out => abi::OUT as usize,
            Self::In => abi::IN as usize,
        }
    }
}

/// How receivers are joined; which of them work depends on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Without a program of their own.
    Plain,
    /// With an `sk_skb` verdict that lets everything pass: what still comes by TCP goes through the same queue. Breaks
    /// splice(2) readers.
    Verdict,
}

impl Variant {
    /// Both, in the order of preference.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Verdict];

    /// `plain` or `verdict`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Verdict => "verdict",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Plain => abi::PLAIN,
            Self::Verdict => abi::VERDICT,
        }
    }
}
