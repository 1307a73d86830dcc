//! Which places of the flows' memory are taken.

use std::collections::{HashMap, VecDeque};

use underpass_ebpf_abi::tier::MAX_FLOWS;

use super::Ticket;

/// The places. One that is given back is used again as late as possible: whoever still looks at it has looked away by
/// then.
#[derive(Debug)]
pub(super) struct Places {
    free: VecDeque<u32>,
    /// Generations by place.
    taken: HashMap<u32, u32>,
    next_generation: u32,
}

impl Places {
    /// All are free but those of `live` flows. Generations are counted from `first` on: a number that no agent before has come near, since proxies may
    /// still hold tickets of flows that are no longer live.
    pub(super) fn new(live: impl IntoIterator<Item = Ticket>, first: u32) -> Self {
        let mut taken = HashMap::new();
        for flow in live {
            // Of an older flow at the same place some sockets are left; the newest has it.
            let generation = taken.entry(flow.index).or_insert(flow.generation);
            *generation = flow.generation.max(*generation);
        }
        Self {
            free: (0..MAX_FLOWS).filter(|index| !taken.contains_key(index)).collect(),
            taken,
            next_generation: first.max(1),
        }
    }

    /// A place, and a number that no flow of it has had.
    pub(super) fn take(&mut self) -> Option<Ticket> {
        let index = self.free.pop_front()?;
        let generation = self.next_generation;
        // 0 stands for no flow.
        self.next_generation = generation.wrapping_add(1).max(1);
        self.taken.insert(index, generation);
        Some(Ticket { index, generation })
    }

    /// Without effect if the place is another flow's.
    pub(super) fn give_back(&mut self, ticket: Ticket) {
        if self.taken.get(&ticket.index) == Some(&ticket.generation) {
            self.taken.remove(&ticket.index);
            self.free.push_back(ticket.index);
        }
    }

    /// Takes back the places of flows that are not among `live`: nobody gave them back who could.
    pub(super) fn reclaim(&mut self, live: &[Ticket]) {
        let live: std::collections::HashSet<_> = live.iter().collect();
        let gone: Vec<_> = self
            .taken
            .iter()
            .map(|(index, generation)| Ticket {
                index: *index,
                generation: *generation,
            })
            .filter(|ticket| !live.contains(ticket))
            .collect();
        for ticket in gone {
            self.give_back(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests; clippy knows only the functions marked so")]

    use super::*;

    fn ticket(index: u32, generation: u32) -> Ticket {
        Ticket { index, generation }
    }

    #[test]
    fn places_of_live_flows_are_not_given_out() {
        let mut places = Places::new([ticket(0, 7), ticket(0, 9), ticket(2, 3)], 10);
        assert_eq!(places.take().unwrap(), ticket(1, 10));
        assert_eq!(places.take().unwrap(), ticket(3, 11));
        places.give_back(ticket(0, 7));
        assert_eq!(places.free.len(), MAX_FLOWS as usize - 4, "that was an older flow");
        places.give_back(ticket(0, 9));
        assert_eq!(places.free.back(), Some(&0));
    }

    #[test]
    fn a_place_is_given_out_once_and_again_after_all_others() {
        let mut places = Places::new([], 1);
        let first = places.take().unwrap();
        places.give_back(first);
        places.give_back(first);
        let others: Vec<_> = (0..MAX_FLOWS).map_while(|_| places.take()).collect();
        assert_eq!(others.len(), MAX_FLOWS as usize);
        assert_eq!(others.last().unwrap().index, first.index);
        assert!(places.take().is_none());
        places.reclaim(&others[1..]);
        assert_eq!(places.take().unwrap().index, others[0].index);
        assert!(places.take().is_none());
    }

    #[test]
    fn generations_never_are_0() {
        let mut places = Places::new([], u32::MAX);
        assert_eq!(places.take().unwrap().generation, u32::MAX);
        assert_eq!(places.take().unwrap().generation, 1);
        assert_eq!(Places::new([], 0).take().unwrap().generation, 1);
    }
}
