//! What was opened for descriptions in the configuration: files and collectors for logs, queues for spans.
//!
//! **One idea.** Whoever is served by a snapshot has a description of it, and finds what was opened for that by its place in memory: nothing is compared on the way of a
//! request. When the configuration changes, descriptions that say the same come to share what was opened, however many there are. It stays open for as long as anybody
//! else has one of them, which those do who are served by an older snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

/// What was opened, by what it was opened for.
#[derive(Debug)]
pub struct Opened<D, O> {
    by_place: ArcSwap<HashMap<usize, Entry<D, O>, RandomState>>,
    /// One changes it at a time: the file, and istiod.
    changing: Mutex<()>,
}

/// The description is kept, so that nothing else comes to its place.
#[derive(Debug)]
struct Entry<D, O> {
    said: Arc<D>,
    opened: Arc<O>,
}

impl<D, O> Clone for Entry<D, O> {
    fn clone(&self) -> Self {
        Self {
            said: self.said.clone(),
            opened: self.opened.clone(),
        }
    }
}

impl<D, O> Default for Opened<D, O> {
    fn default() -> Self {
        Self {
            by_place: ArcSwap::default(),
            changing: Mutex::default(),
        }
    }
}

fn place<D>(said: &Arc<D>) -> usize {
    Arc::as_ptr(said).addr()
}

impl<D: PartialEq, O> Opened<D, O> {
    /// What was opened for a description that was prepared.
    pub fn of(&self, said: &Arc<D>) -> Option<Arc<O>> {
        let by_place = self.by_place.load();
        by_place.get(&place(said)).map(|entry| entry.opened.clone())
    }

    /// Opens what is not open yet, or is not `fit` any more. What others are served by stays.
    pub fn prepare<'d>(
        &self,
        asked: impl Iterator<Item = &'d Arc<D>>,
        fit: impl Fn(&O) -> bool,
        open: impl Fn(&D) -> Arc<O>,
    ) where
        D: 'd,
    {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.by_place.load_full();
        let is_open = |said: &Arc<D>| before.get(&place(said)).is_some_and(|entry| fit(&entry.opened));
        let mut missing = asked.filter(|said| !is_open(said)).peekable();
        if missing.peek().is_none() {
            return;
        }
        // Each that says something else, once.
        let mut known: Vec<Entry<D, O>> = Vec::new();
        for entry in before.values().filter(|entry| fit(&entry.opened)) {
            if !known.iter().any(|known| Arc::ptr_eq(&known.opened, &entry.opened)) {
                known.push(entry.clone());
            }
        }
        let mut by_place = HashMap::clone(&before);
        for said in missing {
            let alike = known.iter().find(|known| known.said == *said);
            let opened = match alike {
                Some(alike) => alike.opened.clone(),
                None => open(said),
            };
            let entry = Entry {
                said: said.clone(),
                opened,
            };
            if alike.is_none() {
                known.push(entry.clone());
            }
            by_place.insert(place(said), entry);
        }
        self.by_place.store(Arc::new(by_place));
    }

    /// Lets go of what nobody else has a description of any more.
    pub fn let_go(&self) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.by_place.load_full();
        // Who is the only one to have it gives it to nobody.
        let is_asked_for = |entry: &Entry<D, O>| Arc::strong_count(&entry.said) > 1;
        if before.values().all(is_asked_for) {
            return;
        }
        let kept = before.iter().filter(|(_, entry)| is_asked_for(entry));
        let kept = kept.map(|(place, entry)| (*place, entry.clone())).collect();
        self.by_place.store(Arc::new(kept));
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.by_place.store(Arc::default());
    }
}
