//! Why a flow was not joined.

use std::io;

use underpass_ebpf_abi::tier::Outcome;

use super::{Side, Variant};

/// Why a flow was not joined. Nothing has changed for its sockets.
#[derive(Debug, thiserror::Error)]
pub enum NotJoined {
    /// An application's socket is not fit.
    #[error("the {}'s socket: {}", .side.name(), explain(*.outcome))]
    Application {
        /// Whose.
        side: Side,
        /// Why.
        outcome: Outcome,
    },
    /// One of the proxy's sockets is not fit.
    #[error("the proxy's socket towards the {}: {}", .side.name(), explain(*.outcome))]
    Hop {
        /// Towards whom.
        side: Side,
        /// Why.
        outcome: Outcome,
    },
    /// There is no place for another flow.
    #[error("the node has as many joined flows as it can have")]
    Full,
    /// The self-test found that the variant asked for does not work here.
    #[error("the variant `{}` does not work on this kernel", .0.name())]
    Variant(Variant),
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl NotJoined {
    /// A name for metrics and the admin view; it stays what it is.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Application { outcome, .. } => label(*outcome),
            Self::Hop {
                outcome: Outcome::NotEstablished,
                ..
            } => "hop_not_established",
            Self::Hop { .. } => "hop",
            Self::Full => "full",
            Self::Variant(_) => "variant",
            Self::System { .. } => "system",
        }
    }

    /// Whether the same flow may well be joined a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Application { outcome, .. } => matches!(outcome, Outcome::NotAccepted | Outcome::NotQuiet),
            Self::Full => true,
            Self::Hop { .. } | Self::Variant(_) | Self::System { .. } => false,
        }
    }

    /// Which application's socket it is about, if about one.
    pub fn side(&self) -> Option<Side> {
        match self {
            Self::Application { side, .. } => Some(*side),
            Self::Hop { .. } | Self::Full | Self::Variant(_) | Self::System { .. } => None,
        }
    }
}

fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unknown | Outcome::Done => "unknown",
        Outcome::NotFound => "not_found",
        Outcome::NotEstablished => "not_established",
        Outcome::NotFollowed => "not_followed",
        Outcome::NotAccepted => "not_accepted",
        Outcome::Blocking => "blocking",
        Outcome::Ulp => "ulp",
        Outcome::Mptcp => "mptcp",
        Outcome::Zerocopy => "zerocopy",
        Outcome::Lowat => "rcvlowat",
        Outcome::Repair => "repair",
        Outcome::Busy => "busy",
        Outcome::NotQuiet => "not_quiet",
        Outcome::NoMemory => "no_memory",
        Outcome::MapRefused => "map_refused",
        Outcome::Splices => "splices",
    }
}

fn explain(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unknown | Outcome::Done => "the kernel's program did not come to an end",
        Outcome::NotFound => "it is not in the network namespace where it was looked for",
        Outcome::NotEstablished => "the connection is not established any more",
        Outcome::NotFollowed => "it is older than the capture, or its process is outside the capture's cgroup",
        Outcome::NotAccepted => "the application has not accepted it yet",
        Outcome::Blocking => "it is blocking, and blocking readers do not see redirected bytes",
        Outcome::Ulp => "it has an upper layer protocol, such as kernel TLS",
        Outcome::Mptcp => "it is an MPTCP subflow",
        Outcome::Zerocopy => "it uses SO_ZEROCOPY, whose completions would not come",
        Outcome::Lowat => "it uses SO_RCVLOWAT, which redirected bytes do not heed",
        Outcome::Repair => "it is, or was, in TCP_REPAIR",
        Outcome::Busy => "another program has it in a socket map of its own",
        Outcome::NotQuiet => "the application has not yet read everything",
        Outcome::NoMemory => "the kernel has no memory for its storage",
        Outcome::Splices => "it is read by splice(2), which does not see redirected bytes",
        Outcome::MapRefused => "the kernel did not take it into the map",
    }
}
