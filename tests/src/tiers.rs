//! Bytes by the way they took: through the proxy, or past it in the kernel.

use std::net::SocketAddr;
use std::ops::AddAssign;

use serde_json::Value;

use crate::access_log::AccessLine;

/// Bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// All of them.
    pub total: u64,
    /// Those that went from socket to socket in the kernel.
    pub kernel: u64,
}

/// Bytes of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    /// From client to server.
    pub sent: Bytes,
    /// From server to client.
    pub received: Bytes,
}

impl Tiers {
    /// How much of everything went in the kernel.
    pub fn share(&self) -> f64 {
        let total = self.sent.total + self.received.total;
        (self.sent.kernel + self.received.kernel) as f64 / total.max(1) as f64
    }
}

impl AddAssign for Tiers {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [(&mut self.sent, other.sent), (&mut self.received, other.received)] {
            sum.total += more.total;
            sum.kernel += more.kernel;
        }
    }
}

impl AccessLine {
    /// Its bytes by the way they took.
    #[track_caller]
    pub fn tiers(&self) -> Tiers {
        let [sent, received] = ["sent", "received"].map(|direction| Bytes {
            total: self.number(&format!("{direction}_bytes")),
            kernel: self.number(&format!("kernel_{direction}_bytes")),
        });
        for bytes in [sent, received] {
            assert!(bytes.kernel <= bytes.total, "{}", self.text);
        }
        Tiers { sent, received }
    }
}

/// An open connection as `/connections` has it.
#[derive(Clone, Debug)]
pub struct ConnectionView(Value);

impl ConnectionView {
    /// The one from `source`.
    pub fn of(connections: &[Value], source: SocketAddr) -> Option<Self> {
        let source = source.to_string();
        let found = connections.iter().find(|connection| connection["src_addr"] == source);
        found.cloned().map(Self)
    }

    /// Whether both directions are in the kernel.
    pub fn is_in_kernel(&self) -> bool {
        self.0["tier"] == "kernel"
    }

    /// Its bytes so far, by the way they took.
    pub fn tiers(&self) -> Tiers {
        let number = |key: &str| self.0[key].as_u64().unwrap_or_else(|| panic!("no {key}: {}", self.0));
        let bytes = |direction: &str| Bytes {
            total: number(&format!("{direction}_bytes")),
            kernel: number(&format!("kernel_{direction}_bytes")),
        };
        Tiers {
            sent: bytes("sent"),
            received: bytes("received"),
        }
    }

    /// Why it is not in the kernel.
    pub fn why_not(&self) -> &str {
        self.0["why_not"].as_str().unwrap_or_default()
    }
}
