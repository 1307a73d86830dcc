//! Envoy's response flags (`%RESPONSE_FLAGS%`): why a request did not go as it should have.

use std::fmt;

use crate::ending::Ending;

/// A set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(u32);

impl Flags {
    /// The service has no endpoint (UH).
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// It took too long (UT).
    pub const UPSTREAM_TIMEOUT: Self = Self(1 << 1);
    /// The endpoint reset it (UR).
    pub const UPSTREAM_RESET: Self = Self(1 << 2);
    /// The endpoint could not be connected to (UF).
    pub const CONNECT_FAILED: Self = Self(1 << 3);
    /// The endpoint closed the connection (UC).
    pub const UPSTREAM_CLOSED: Self = Self(1 << 4);
    /// A limit of the cluster is reached (UO).
    pub const OVERFLOW: Self = Self(1 << 5);
    /// There is no route (NR).
    pub const NO_ROUTE: Self = Self(1 << 6);
    /// It was delayed on purpose (DI).
    pub const DELAY_INJECTED: Self = Self(1 << 7);
    /// It was refused on purpose (FI).
    pub const FAULT_INJECTED: Self = Self(1 << 8);
    /// Policy denied it; our own word, as in the log of connections.
    pub const DENIED: Self = Self(1 << 9);
    /// The client went away (DC).
    pub const CLIENT_GONE: Self = Self(1 << 10);
    /// No retry was left, or none was any better (URX).
    pub const RETRIES_USED_UP: Self = Self(1 << 11);
    /// The route leads to a cluster that is not there (NC).
    pub const NO_CLUSTER: Self = Self(1 << 12);
    /// The request was malformed (DPE).
    pub const PROTOCOL_ERROR: Self = Self(1 << 13);
    /// Nothing of it moved for too long (SI).
    pub const IDLE: Self = Self(1 << 14);

    /// The proxy is stopping, or the client's pod is gone; our own word, as in the log of connections (DRAIN).
    pub const DRAINED: Self = Self(1 << 15);
    /// Its stream to the endpoint lasted longer than one to its cluster may (UMSDR).
    pub const STREAM_LASTED: Self = Self(1 << 16);

    /// There were too many of its kind (RL).
    pub const RATE_LIMITED: Self = Self(1 << 17);
    /// An authorization server does not let it pass, or could not be asked (UAEX).
    pub const UNAUTHORIZED_EXTERNAL: Self = Self(1 << 18);

    /// The host that it is for could not be resolved (DF).
    pub const DNS_FAILED: Self = Self(1 << 19);

    /// Those that say what has become of the last try.
    pub fn of_last_try(self) -> Self {
        const OF_TRIES: u32 = Flags::UPSTREAM_TIMEOUT.0
            | Flags::UPSTREAM_RESET.0
            | Flags::CONNECT_FAILED.0
            | Flags::UPSTREAM_CLOSED.0
            | Flags::OVERFLOW.0
            | Flags::STREAM_LASTED.0;
        Self(self.0 & OF_TRIES)
    }

    /// In the order in which Envoy comes to set them, and tells them: what was done on purpose, that there was no further try, and what went wrong with the
    /// last.
    const WORDS: [(Self, &'static str); 20] = [
        (Self::DELAY_INJECTED, "DI"),
        (Self::FAULT_INJECTED, "FI"),
        (Self::RATE_LIMITED, "RL"),
        (Self::UNAUTHORIZED_EXTERNAL, "UAEX"),
        (Self::RETRIES_USED_UP, "URX"),
        (Self::OVERFLOW, "UO"),
        (Self::NO_HEALTHY_UPSTREAM, "UH"),
        (Self::UPSTREAM_TIMEOUT, "UT"),
        (Self::UPSTREAM_RESET, "UR"),
        (Self::CONNECT_FAILED, "UF"),
        (Self::UPSTREAM_CLOSED, "UC"),
        (Self::NO_ROUTE, "NR"),
        (Self::DENIED, "DENY"),
        (Self::DRAINED, "DRAIN"),
        (Self::CLIENT_GONE, "DC"),
        (Self::IDLE, "SI"),
        (Self::NO_CLUSTER, "NC"),
        (Self::PROTOCOL_ERROR, "DPE"),
        (Self::STREAM_LASTED, "UMSDR"),
        (Self::DNS_FAILED, "DF"),
    ];

    /// That of what ended a request's connection, the same as the connection's (`Ending::response_flag`).
    pub fn of_ending(ending: Ending) -> Self {
        let word = ending.response_flag();
        let flag = Self::WORDS.into_iter().find(|(_, flag)| *flag == word);
        flag.map_or(Self::CLIENT_GONE, |(flag, _)| flag)
    }

    /// Whether one of `others` is among them.
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Adds those of `other`.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Self::WORDS.iter().filter(|(flag, _)| self.0 & flag.0 != 0);
        let mut is_first = true;
        for (_, word) in words {
            if !is_first {
                f.write_str(",")?;
            }
            is_first = false;
            f.write_str(word)?;
        }
        if is_first {
            f.write_str("-")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_envoy_writes_them() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.add(Flags::RETRIES_USED_UP);
        flags.add(Flags::CONNECT_FAILED);
        assert_eq!(flags.to_string(), "URX,UF");
        assert!(flags.has(Flags::CONNECT_FAILED) && !flags.has(Flags::CLIENT_GONE));
    }

    #[test]
    fn an_ending_is_flagged_as_it_is_for_connections() {
        for ending in [
            Ending::PolicyRevoked,
            Ending::Drained,
            Ending::IdleTimeout,
            Ending::HandshakeFailed,
        ] {
            assert_eq!(Flags::of_ending(ending).to_string(), ending.response_flag());
        }
    }
}
