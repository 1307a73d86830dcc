//! What the two sides of a connection do, derived from a seed.

use std::time::Duration;

use super::pattern::{MAX_VOICES, Speech};

/// The largest single write.
pub(super) const MAX_WRITE: usize = 256 * 1024;
/// About how many writes or reads a side has at most: a long stream in tiny pieces with stalls would take minutes.
const MAX_STEPS: u64 = 500;
/// The longest planned stall: longer than a relay's wake-ups, short enough for hundreds of connections.
const MAX_STALL: Duration = Duration::from_millis(12);
/// The longest opening, and a question in it.
const MAX_OPENING: u64 = 400;
const MAX_QUESTION: u64 = 16;

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

/// Which conversations a script is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Genre {
    /// Of every length: many are over before anything can happen to them.
    Mixed,
    /// Long enough for much to happen to the connection meanwhile. In some of them several threads write to one socket.
    Long,
}

impl Genre {
    /// Its name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Genre::Mixed => "mixed",
            Genre::Long => "long",
        }
    }

    /// The genre of a name.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        [Genre::Mixed, Genre::Long]
            .into_iter()
            .find(|genre| genre.word() == word)
    }
}

/// What one side does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The bytes that it sends.
    pub sends: Speech,
    /// The bytes that its peer sends.
    pub expects: Speech,
    /// How many bytes it has to send.
    pub total: u64,
    /// Its largest write and read.
    pub max_chunk: usize,
    /// A stall before a write, and before a read, in so many of 256 cases.
    pub stalls: (u8, u8),
    /// How it ends.
    pub ending: Ending,
    /// So many of its first bytes are part of a talk in turns, small questions and answers, before both sides write as they like.
    pub opening: u64,
    /// Whether it asks, in the opening.
    asks: bool,
    seed: u64,
}

/// What both sides do.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where it comes from: the same seed is the same script of its genre.
    pub seed: u64,
    /// Which conversations it is drawn from.
    pub genre: Genre,
    /// The side that connects.
    pub client: Plan,
    /// The side that accepts.
    pub server: Plan,
}

impl Script {
    /// The script of a seed. About half of all scripts end in order on both sides, in the others one side does not.
    pub fn new(seed: u64) -> Self {
        Self::of(Genre::Mixed, seed)
    }

    /// As [`Script::new`], of a genre.
    pub fn of(genre: Genre, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let [mut client, mut server] = [(); 2].map(|()| match genre {
            Genre::Mixed => Plan::mixed(&mut random),
            Genre::Long => Plan::long(&mut random),
        });
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
        if genre == Genre::Long && random.u8(..4) > 0 {
            // Whoever writes less than that before it leaves would keep the other waiting.
            let opening = MAX_OPENING.min(client.allowed()).min(server.allowed());
            (client.opening, server.opening, client.asks) = (opening, opening, true);
        }
        for plan in [&mut client, &mut server] {
            // Its progress must be known within a step, from one thread.
            if matches!(plan.ending, Ending::Killed { .. }) {
                plan.sends.voices = 1;
            }
        }
        (client.expects, server.expects) = (server.sends, client.sends);
        Self {
            seed,
            genre,
            client,
            server,
        }
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
    fn mixed(random: &mut fastrand::Rng) -> Self {
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
        Self::with(random, total, stalls)
    }

    fn long(random: &mut fastrand::Rng) -> Self {
        let total = match random.u8(..8) {
            0 => random.u64(1..=64 * 1024),
            1..4 => random.u64(64 * 1024..=1024 * 1024),
            _ => random.u64(1024 * 1024..=8 * 1024 * 1024),
        };
        let stalls = (random.u8(..32), random.u8(..32));
        let mut plan = Self::with(random, total, stalls);
        if random.u8(..4) == 0 {
            plan.sends.voices = random.u8(2..=MAX_VOICES);
        }
        plan
    }

    fn with(random: &mut fastrand::Rng, total: u64, stalls: (u8, u8)) -> Self {
        Self {
            sends: Speech::new(random.u64(..)),
            expects: Speech::new(0),
            total,
            max_chunk: 1 << random.u32(0..=18),
            stalls,
            ending: Ending::HalfClose { after_peer: false },
            opening: 0,
            asks: false,
            seed: random.u64(..),
        }
    }

    /// How much it may write at most when it has written and read so much: in the opening one side at a time.
    pub(super) fn room(&self, written: u64, read: u64) -> u64 {
        let left = self.allowed().saturating_sub(written);
        let in_turn = match self.opening.checked_sub(written) {
            None | Some(0) => left,
            Some(opening) if !self.asks => opening.min(read.saturating_sub(written)),
            Some(opening) if written == read => opening.min(MAX_QUESTION),
            Some(_) => 0,
        };
        left.min(in_turn)
    }

    /// Both sides of a conversation that has no end of its own, of pieces of every size and no stalls.
    pub fn endless(seed: u64) -> [Self; 2] {
        let mut random = fastrand::Rng::with_seed(seed);
        let [mut client, mut server] = [(); 2].map(|()| Self {
            max_chunk: 1 << random.u32(8..=17),
            ..Self::with(&mut random, u64::MAX, (0, 0))
        });
        (client.expects, server.expects) = (server.sends, client.sends);
        [client, server]
    }

    /// How much it may write before its ending is due.
    pub(super) fn allowed(&self) -> u64 {
        match self.ending {
            Ending::HalfClose { .. } | Ending::Killed { .. } => self.total,
            Ending::Reset { written, .. } | Ending::Close { written, .. } => written,
        }
    }

    /// The random choices of its thread `voice` while it is carried out.
    pub(super) fn choices(&self, voice: u8) -> Choices {
        Choices {
            random: fastrand::Rng::with_seed(self.seed ^ u64::from(voice)),
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
