//! Why a flow is not in the kernel, in one word each.

use std::fmt;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why a flow is not in the kernel. The words are those of the agent where the agent says it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum WhyNot {
            $($(#[$doc])* $name,)*
        }

        impl WhyNot {
            /// All of them, in the order of their discriminants.
            pub const ALL: [Self; words!(@count $($name)*)] = [$(Self::$name,)*];

            /// The word for metrics and the admin view.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
    (@count) => { 0 };
    (@count $first:ident $($rest:ident)*) => { 1 + words!(@count $($rest)*) };
}

words! {
    /// It has not moved enough yet to be worth it.
    TooYoung = "too_young",
    /// `node.offload` keeps it out.
    OffBySettings = "off_by_settings",
    /// The client or the destination is not on this node.
    NotLocal = "not_local",
    /// No agent is there to join it.
    NoAgent = "no_agent",
    /// The agent has no kernel tier on this machine.
    TierOff = "tier_off",
    /// The agent has as much to do as it may have.
    AgentBusy = "agent_busy",
    /// A side has ended its stream.
    Ending = "ending",
    /// The proxy could not empty its hands in time: a receiver does not read.
    NotDrained = "not_drained",
    /// The application has not yet read everything.
    NotQuiet = "not_quiet",
    /// The application has not yet accepted the connection.
    NotAccepted = "not_accepted",
    /// The application's socket is blocking.
    Blocking = "blocking",
    /// The application's socket has an upper layer protocol (kernel TLS).
    Ulp = "ulp",
    /// The application's socket is an MPTCP subflow.
    Mptcp = "mptcp",
    /// The application uses SO_ZEROCOPY.
    Zerocopy = "zerocopy",
    /// The application uses SO_RCVLOWAT.
    Lowat = "rcvlowat",
    /// The application reads by splice(2).
    Splices = "splices",
    /// The application's socket is in TCP_REPAIR.
    Repair = "repair",
    /// Another program has the application's socket in a map of its own.
    Busy = "busy",
    /// The application's socket was not found where it must be.
    NotFound = "not_found",
    /// The connection is not established any more.
    NotEstablished = "not_established",
    /// The connection is older than the capture, or outside its cgroup.
    NotFollowed = "not_followed",
    /// All places for joined flows are taken.
    Full = "full",
    /// The capture that it was joined by was removed.
    Detached = "detached",
    /// The agent's kernel side failed, or said what this proxy does not know.
    System = "system",
}

impl WhyNot {
    /// What the agent said.
    pub fn from_agent(word: &str) -> Self {
        let known = match word {
            "hop_not_established" => Some(Self::NotEstablished),
            _ => Self::ALL.into_iter().find(|why| why.word() == word),
        };
        known.unwrap_or_else(|| {
            tracing::debug!(word, "the agent did not join a connection");
            Self::System
        })
    }

    /// The value with this discriminant.
    pub fn from_discriminant(value: u8) -> Self {
        Self::ALL.get(usize::from(value)).copied().unwrap_or(Self::System)
    }

    /// Whether it has nothing to do with the flow itself.
    pub fn is_of_the_node(self) -> bool {
        matches!(
            self,
            Self::OffBySettings | Self::NoAgent | Self::TierOff | Self::AgentBusy
        )
    }

    /// Whether another time may have another outcome for the same flow.
    pub fn may_pass(self) -> bool {
        self.is_of_the_node()
            || matches!(
                self,
                Self::TooYoung | Self::NotDrained | Self::NotQuiet | Self::NotAccepted | Self::Full
            )
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use underpass_ebpf::tier::{NotJoined, Outcome, Side};

    use super::*;

    #[test]
    fn words_and_discriminants_name_one_reason_each() {
        for (number, why) in WhyNot::ALL.into_iter().enumerate() {
            assert_eq!(WhyNot::from_discriminant(number as u8), why);
            assert_eq!(WhyNot::from_agent(why.word()), why);
        }
        assert_eq!(WhyNot::from_agent("what no agent says"), WhyNot::System);
    }

    /// What is wrong with an application's socket must not end up as `system`.
    #[test]
    fn the_agents_words_are_known() {
        let of_the_machine = [Outcome::Unknown, Outcome::Done, Outcome::NoMemory, Outcome::MapRefused];
        for outcome in Outcome::ALL {
            let side = Side::Client;
            let word = NotJoined::Application { side, outcome }.reason();
            let is_system = WhyNot::from_agent(word) == WhyNot::System;
            assert_eq!(is_system, of_the_machine.contains(&outcome), "{word}");
        }
        assert_eq!(WhyNot::from_agent(NotJoined::Full.reason()), WhyNot::Full);
    }
}
