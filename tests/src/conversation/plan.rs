//! What the two sides of a connection do, derived from a seed.

use std::time::Duration;

/// The largest single write.
pub(super) const MAX_WRITE: usize = 256 * 1024;
/// About how many writes or reads a side has at most: a long stream in tiny pieces with stalls would take minutes.
const MAX_STEPS: u64 = 500;
/// The longest planned stall: longer than a relay's wake-ups, short enough for hundreds of connections.
const MAX_STALL: Duration = Duration::from_millis(12);

/// How one side ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Shuts down its sending direction after its last byte (`after_peer`: and after the peer's EOF), reads to the end.
    HalfClose {
        /// Whether it waits for the peer's EOF first.
        after_peer: bool,
    },
    /// Closes with SO_LINGER 0, which sends a RST, once it has written and read this much.
    Reset {
        /// Bytes written before, less than it had planned to write.
        written: u64,
        /// Bytes read before.
        read: u64,
    },
    /// Closes with whatever it hasn't read, once it has written and read this much.
    Close {
        /// Bytes written before.
        written: u64,
        /// Bytes read before.
        read: u64,
    },
    /// Is killed (its process, with SIGKILL) once it has written this much. Until then as `HalfClose`.
    Killed {
        /// Bytes written before, as far as its process has reported.
        written: u64,
    },
}

/// What one side does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Key of the bytes that it sends.
    pub sends: u64,
    /// Key of the bytes that its peer sends.
    pub expects: u64,
    /// How many bytes it has to send.
    pub total: u64,
    /// Its largest write and read.
    pub max_chunk: usize,
    /// A stall before a write, and before a read, in so many of 256 cases.
    pub stalls: (u8, u8),
    /// How it ends.
    pub ending: Ending,
    seed: u64,
}

/// What both sides do.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where it comes from: the same seed is the same script.
    pub seed: u64,
    /// The side that connects.
    pub client: Plan,
    /// The side that accepts.
    pub server: Plan,
}

impl Script {
    /// The script of a seed. About half of all scripts end in order on both sides, in the others one side does not.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut client, mut server) = (Plan::new(&mut random), Plan::new(&mut random));
        (client.expects, server.expects) = (server.sends, client.sends);
        let longer = client.total.max(server.total);
        for plan in [&mut client, &mut server] {
            plan.max_chunk = plan.max_chunk.max((longer / MAX_STEPS) as usize);
        }
        let (rude, other) = if random.bool() {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        rude.ending = match random.u8(..8) {
            0..4 => Ending::HalfClose {
                after_peer: random.bool(),
            },
            4..6 => Ending::Reset {
                written: part(&mut random, rude.total),
                read: part(&mut random, other.total),
            },
            6 => Ending::Close {
                written: part(&mut random, rude.total),
                read: part(&mut random, other.total),
            },
            _ => Ending::Killed {
                written: part(&mut random, rude.total),
            },
        };
        // At most one side may wait for the other's EOF.
        if !matches!(rude.ending, Ending::HalfClose { after_peer: true }) {
            other.ending = Ending::HalfClose {
                after_peer: random.bool(),
            };
        }
        Self { seed, client, server }
    }

    /// Whether both sides end in order.
    pub fn is_clean(&self) -> bool {
        [&self.client, &self.server]
            .iter()
            .all(|plan| matches!(plan.ending, Ending::HalfClose { .. }))
    }
}

/// A part of `total`, less than all of it where that is possible; often nothing or the most.
fn part(random: &mut fastrand::Rng, total: u64) -> u64 {
    let most = total.saturating_sub(1);
    match random.u8(..4) {
        0 => 0,
        1 => most,
        _ => random.u64(..=most),
    }
}

impl Plan {
    fn new(random: &mut fastrand::Rng) -> Self {
        let total = match random.u8(..8) {
            0 => 0,
            1 => random.u64(1..=16),
            2..5 => random.u64(1..=64 * 1024),
            5..7 => random.u64(1..=1024 * 1024),
            _ => random.u64(1..=8 * 1024 * 1024),
        };
        let stalls = if random.bool() {
            (0, 0)
        } else {
            (random.u8(..24), random.u8(..24))
        };
        Self {
            sends: random.u64(..),
            expects: 0,
            total,
            max_chunk: 1 << random.u32(0..=18),
            stalls,
            ending: Ending::HalfClose { after_peer: false },
            seed: random.u64(..),
        }
    }

    /// Its random choices while it is carried out.
    pub(super) fn choices(&self) -> Choices {
        Choices {
            random: fastrand::Rng::with_seed(self.seed),
            max_chunk: self.max_chunk,
            stalls: self.stalls,
        }
    }
}

/// The piece sizes and stalls of a plan, in order.
pub(super) struct Choices {
    random: fastrand::Rng,
    max_chunk: usize,
    stalls: (u8, u8),
}

impl Choices {
    pub(super) fn chunk(&mut self) -> usize {
        self.random.usize(1..=self.max_chunk.clamp(1, MAX_WRITE))
    }

    pub(super) fn write_stall(&mut self) -> Duration {
        self.stall(self.stalls.0)
    }

    pub(super) fn read_stall(&mut self) -> Duration {
        self.stall(self.stalls.1)
    }

    fn stall(&mut self, of_256: u8) -> Duration {
        if self.random.u8(..) < of_256 {
            MAX_STALL.mul_f64(self.random.f64())
        } else {
            Duration::ZERO
        }
    }
}
