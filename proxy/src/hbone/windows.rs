//! How much peers may send to this node before somebody has taken it: windows that grow by demand, cut from one budget.
//!
//! HTTP/2 promises a peer room before it has sent anything, and a promise cannot be taken back: what was promised on all connections together
//! is what they can make us hold. So each connection begins with the least that HTTP/2 knows, and its [`Window`] grows with
//!
//! * what it has **moved**, up to `connection_window`: a busy connection gets a window for its bandwidth, an idle one stays cheap;
//! * what its streams **hold** for receivers that do not read, so that those do not stop the streams beside them (ztunnel's issue 1538).
//!
//! **Invariant.** The [`Budget`] counts every byte that a peer has leave to send or that is held for it, until nobody holds it any more. A window that is
//! made smaller is counted in full until the peer has sent what it had been promised.
//!
//! **Nobody takes it all.** The windows of one peer identity together grow no further than to a quarter of what is left then (a *dynamic threshold*, as
//! switches share their buffers): whoever makes us hold much, on however many connections, leaves something for others. Where there is nothing to grow by, a connection
//! whose streams hold everything waits for them, as TCP would. What its connections begin with is refused when the identity has half of what there is for it. Whoever has not
//! shown a certificate gets nothing of the budget: a window is made when the handshake is done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use underpass_config::{HboneSettings, Identity};

/// What every HTTP/2 connection begins with (RFC 9113, section 6.9.2).
pub const LEAST: u32 = 65_535;

/// The largest window that there is (RFC 9113, section 6.9.1).
const MOST: u64 = (1 << 31) - 1;

/// A peer's windows grow no further than to this part of what is left then.
const SHARE: u64 = 4;

/// Its connections begin as long as it has no more than this part of it.
const SHARE_TO_BEGIN: u64 = 1;

/// Less is not worth a frame that says it.
const STEP: u64 = 16 << 10;

/// How often a window that could not grow, or that waits for its peer to use up a promise, looks again.
const LOOK: Duration = Duration::from_secs(1);

/// What all connections of a node may be sent.
#[derive(Debug, Default)]
pub struct Budget {
    size: AtomicU64,
    reserved: AtomicU64,
    refused: AtomicU64,
    held_back: AtomicU64,
    /// What each peer has of it.
    shares: Mutex<HashMap<Identity, Arc<AtomicU64>>>,
}

impl Budget {
    /// Follows the settings.
    pub fn resize(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that peers may send or that are held for them.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Connections for which there was nothing.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How often a window was to grow and could not.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// As much of `wanted` as there is, for one who has `own` already and may have 1/`share` of what is left then.
    fn reserve(&self, own: u64, wanted: u64, share: u64) -> u64 {
        let size = self.size.load(Ordering::Relaxed);
        let mut granted = 0;
        let grant = |reserved: u64| {
            let left = size.saturating_sub(reserved);
            let most = (left + own) / (share + 1);
            granted = wanted.min(most.saturating_sub(own));
            (granted > 0).then_some(reserved + granted)
        };
        let _ = self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant);
        granted
    }

    fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<Identity, Arc<AtomicU64>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is nothing for another connection.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("node.hbone.buffer is spent on other connections: raise it, or see whose streams do not read")]
pub struct Spent;

/// The window of one connection, as its streams and whoever drives it know it.
#[derive(Debug)]
pub struct Window {
    budget: Arc<Budget>,
    /// Of the budget.
    reserved: AtomicU64,
    /// Whose it is.
    peer: Identity,
    /// What they have in all.
    share: Arc<AtomicU64>,
    /// `connection_window`.
    largest: u64,
    /// What the codec has been told.
    target: AtomicU64,
    /// Received from the codec, and taken by nobody yet.
    held: AtomicU64,
    /// Received in all.
    moved: AtomicU64,
    is_held_back: AtomicBool,
    may_change: Notify,
}

impl Window {
    /// The window of a new connection of `peer`.
    ///
    /// # Errors
    /// When the budget, or the peer's share of it, is spent.
    pub fn new(budget: &Arc<Budget>, settings: &HboneSettings, peer: &Identity) -> Result<Arc<Self>, Spent> {
        budget.resize(settings.buffer.0.into());
        let least = u64::from(LEAST);
        let share = budget.shares().entry(peer.clone()).or_default().clone();
        let window = Self {
            budget: budget.clone(),
            reserved: AtomicU64::new(0),
            peer: peer.clone(),
            share,
            largest: settings.connection_window.0.into(),
            target: AtomicU64::new(least),
            held: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            is_held_back: AtomicBool::new(false),
            may_change: Notify::new(),
        };
        if window.reserve(least, SHARE_TO_BEGIN) < least {
            budget.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Spent);
        }
        Ok(Arc::new(window))
    }

    /// As much of `wanted` as there is for this peer.
    fn reserve(&self, wanted: u64, share: u64) -> u64 {
        let granted = self.budget.reserve(self.share.load(Ordering::Relaxed), wanted, share);
        self.reserved.fetch_add(granted, Ordering::Relaxed);
        self.share.fetch_add(granted, Ordering::Relaxed);
        granted
    }

    fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
        self.share.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.release(bytes);
    }

    /// A stream has received bytes, and holds them.
    pub fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let base = self.base(self.moved.fetch_add(bytes, Ordering::Relaxed) + bytes);
        if self.is_narrow(held, base) && !self.is_held_back.load(Ordering::Relaxed) {
            self.may_change.notify_one();
        }
    }

    /// A stream holds bytes no more.
    pub fn taken(&self, bytes: usize) {
        let bytes = bytes as u64;
        let held = self.held.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if self.is_wide(held, self.base(self.moved.load(Ordering::Relaxed))) {
            self.may_change.notify_one();
        }
    }

    /// What a connection that has moved so much may have on its way.
    fn base(&self, moved: u64) -> u64 {
        moved.clamp(LEAST.into(), self.largest)
    }

    /// Whether half of what should be on its way could not be.
    fn is_narrow(&self, held: u64, base: u64) -> bool {
        self.target.load(Ordering::Relaxed) < held + base / 2
    }

    /// Whether it is far more.
    fn is_wide(&self, held: u64, base: u64) -> bool {
        self.target.load(Ordering::Relaxed) > held + 2 * base + STEP
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.release(self.reserved.load(Ordering::Relaxed));
        let mut shares = self.budget.shares();
        // The map's and ours. Who comes takes theirs under the same lock.
        if Arc::strong_count(&self.share) == 2 {
            shares.remove(&self.peer);
        }
    }
}

/// What somebody holds of what a connection has received; nobody does when it is dropped.
#[derive(Debug)]
pub struct Held {
    window: Arc<Window>,
    bytes: usize,
}

impl Held {
    /// Nothing yet, of the connection of `window`.
    pub fn new(window: Arc<Window>) -> Self {
        Self { window, bytes: 0 }
    }

    /// So many bytes more.
    pub fn received(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.window.received(bytes);
    }

    /// So many less.
    pub fn taken(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.window.taken(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.window.taken(self.bytes);
    }
}

/// Says how large the window of a connection is to be. Whoever drives the connection has it.
#[derive(Debug)]
pub struct Valve {
    window: Arc<Window>,
    /// Promised beyond the target, and not yet used.
    owed: u64,
    /// What had been received when that was last reckoned.
    reckoned: u64,
}

impl Valve {
    /// Of the connection of `window`.
    pub fn new(window: Arc<Window>) -> Self {
        Self {
            window,
            owed: 0,
            reckoned: 0,
        }
    }

    /// The window, for the connection's streams.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Resolves when the connection's window is to be another, with its size in bytes. May be dropped at any time.
    pub async fn changed(&mut self) -> u32 {
        loop {
            if let Some(target) = self.adjust() {
                return target;
            }
            let looks_again = self.owed > 0 || self.window.is_held_back.load(Ordering::Relaxed);
            tokio::select! {
                () = self.window.may_change.notified() => {}
                () = tokio::time::sleep(LOOK), if looks_again => {}
            }
        }
    }

    fn adjust(&mut self) -> Option<u32> {
        let window = self.window.clone();
        self.settle(&window);
        let (held, target) = (
            window.held.load(Ordering::Relaxed),
            window.target.load(Ordering::Relaxed),
        );
        let base = window.base(window.moved.load(Ordering::Relaxed));
        let wanted = (held + base).min(MOST);
        let changed = if window.is_narrow(held, base) && wanted > target {
            target + self.grow(&window, wanted - target)
        } else {
            window.is_held_back.store(false, Ordering::Relaxed);
            if window.is_wide(held, base) {
                self.owed += target - wanted;
                wanted
            } else {
                target
            }
        };
        window.target.store(changed, Ordering::Relaxed);
        (changed != target).then(|| u32::try_from(changed).unwrap_or(MOST as u32))
    }

    /// Gives back what the peer has used of what it had been promised too much.
    fn settle(&mut self, window: &Window) {
        let moved = window.moved.load(Ordering::Relaxed);
        let used = self.owed.min(moved - self.reckoned);
        self.reckoned = moved;
        self.owed -= used;
        window.release(used);
    }

    /// By how much of `wanted` the window may grow.
    fn grow(&mut self, window: &Window, wanted: u64) -> u64 {
        // What is promised still is counted still.
        let promised = self.owed.min(wanted);
        self.owed -= promised;
        let more = wanted - promised;
        let mut granted = window.reserve(more, SHARE);
        if granted < more.min(STEP) {
            window.release(granted);
            granted = 0;
        }
        let was = window.is_held_back.swap(granted < more, Ordering::Relaxed);
        if granted < more && !was {
            window.budget.held_back.fetch_add(1, Ordering::Relaxed);
        }
        promised + granted
    }
}

#[cfg(test)]
mod tests {
    use underpass_config::ByteSize;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn settings(buffer: u32) -> HboneSettings {
        HboneSettings {
            buffer: ByteSize(buffer),
            ..HboneSettings::default()
        }
    }

    fn valve(budget: &Arc<Budget>, buffer: u64) -> Option<Valve> {
        valve_of("somebody", budget, buffer)
    }

    fn valve_of(peer: &str, budget: &Arc<Budget>, buffer: u64) -> Option<Valve> {
        let settings = settings(u32::try_from(buffer).unwrap());
        let peer = format!("spiffe://cluster.local/ns/shop/sa/{peer}").parse().unwrap();
        Window::new(budget, &settings, &peer).ok().map(Valve::new)
    }

    fn target(valve: &mut Valve) -> u64 {
        valve.adjust();
        valve.window.target.load(Ordering::Relaxed)
    }

    /// Receives bytes as a peer sends them that keeps to its window.
    fn receive(valve: &mut Valve, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let room = target(valve).saturating_sub(valve.window.held.load(Ordering::Relaxed));
            let part = left.min(room);
            if part == 0 {
                return;
            }
            valve.window.received(part as usize);
            left -= part;
        }
    }

    fn held(valve: &Valve) -> u64 {
        valve.window.held.load(Ordering::Relaxed)
    }

    #[test]
    fn a_window_grows_with_what_moves_and_is_given_back_at_the_end() {
        let budget = Arc::default();
        let mut valve = valve(&budget, 512 * MIB).unwrap();
        assert_eq!(target(&mut valve), u64::from(LEAST));
        for _ in 0..100 {
            receive(&mut valve, 1 << 16);
            valve.window.taken(1 << 16);
        }
        let grown = target(&mut valve);
        assert!((2 * MIB..=4 * MIB).contains(&grown), "{grown}");
        assert_eq!(budget.reserved(), grown);
        drop(valve);
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn what_streams_hold_does_not_narrow_what_others_may_send() {
        let budget = Arc::default();
        let mut valve = valve(&budget, 512 * MIB).unwrap();
        receive(&mut valve, 64 * MIB);
        assert_eq!(held(&valve), 64 * MIB);
        assert!(target(&mut valve) >= held(&valve) + 2 * MIB);
    }

    #[test]
    fn no_peer_holds_more_than_a_part_of_the_budget_however_many_connections_it_has() {
        let budget = Arc::default();
        let mut valves: Vec<Valve> = Vec::new();
        for _ in 0..100 {
            let mut valve = valve_of("hog", &budget, 64 * MIB).unwrap();
            receive(&mut valve, 64 * MIB);
            valves.push(valve);
        }
        let least = 100 * u64::from(LEAST);
        assert!(budget.held_back() > 0);
        assert!(budget.reserved() <= 64 * MIB / SHARE + least, "{}", budget.reserved());
        assert!(valves.iter().map(held).sum::<u64>() <= budget.reserved());
        let mut other = valve_of("other", &budget, 64 * MIB).unwrap();
        receive(&mut other, 64 * MIB);
        assert!(held(&other) > 8 * MIB, "{}", held(&other));
        drop((valves, other));
        assert_eq!(budget.reserved(), 0);
        assert!(budget.shares().is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_budget_that_is_spent_refuses_and_says_so() {
        let budget = Arc::default();
        let mut all: Vec<Valve> = Vec::new();
        while let Some(valve) = valve(&budget, MIB) {
            all.push(valve);
        }
        assert_eq!(budget.refused(), 1);
        assert!(
            budget.reserved() <= MIB / 2,
            "connections that do nothing leave half to others"
        );
        assert!(valve_of("another", &budget, MIB).is_some());
        assert!(budget.shares().len() == 1, "nothing is kept of who has gone");
        all.clear();
        assert_eq!(budget.reserved(), 0);
        assert!(valve(&budget, MIB).is_some());
    }

    /// The peer may still send what it had been promised: it is counted until it has.
    #[test]
    fn a_promise_is_counted_until_it_has_been_used() {
        let budget = Arc::default();
        let mut valve = valve(&budget, 512 * MIB).unwrap();
        receive(&mut valve, 40 * MIB);
        let promised = budget.reserved();
        valve.window.taken(40 * MIB as usize);
        let narrowed = target(&mut valve);
        assert!(narrowed <= 8 * MIB, "{narrowed}");
        assert_eq!(budget.reserved(), promised);
        let excess = promised - narrowed;
        valve.window.received(excess as usize);
        valve.window.taken(excess as usize);
        target(&mut valve);
        assert!(budget.reserved() <= narrowed + 4 * MIB, "{}", budget.reserved());
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_was_held_back_grows_when_others_have_gone() {
        let budget = Arc::default();
        let mut hog = valve(&budget, 4 * MIB).unwrap();
        receive(&mut hog, 4 * MIB);
        let mut valve = valve(&budget, 4 * MIB).unwrap();
        receive(&mut valve, 4 * MIB);
        let before = target(&mut valve);
        drop(hog);
        assert!(u64::from(valve.changed().await) > before);
    }
}
