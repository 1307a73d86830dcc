//! The applications whose sockets were seen to be blocking: their next connections are not held still in vain.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use underpass_config::{Workload, WorkloadUid};

use crate::flow::FlowFacts;
use crate::handover::Side;

/// Applications that are remembered. When there are more, the one that has been known for longest is forgotten: it costs a few refused joins.
const REMEMBERED: usize = 4096;

/// Blocking sockets without another kind among them, until an application is taken to have no other.
const CERTAIN: u32 = 3;

/// Who runs an application: a workload, or whoever has an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Workload(WorkloadUid),
    Address(IpAddr),
}

impl Host {
    fn of(workload: Option<&Arc<Workload>>, address: IpAddr) -> Self {
        match workload {
            Some(workload) => Self::Workload(workload.uid.clone()),
            None => Self::Address(address),
        }
    }
}

/// The two applications of a flow.
#[derive(Clone, Debug)]
pub struct Ends {
    client: Host,
    server: Host,
    port: u16,
}

impl Ends {
    /// Of a flow.
    pub fn of(facts: &FlowFacts) -> Self {
        Self {
            client: Host::of(facts.source.workload(), facts.source.ip()),
            server: Host::of(facts.destination_workload.as_ref(), facts.destination.ip()),
            port: facts.destination.port(),
        }
    }

    fn application(&self, side: Side) -> Application {
        let host = match side {
            Side::Client => self.client.clone(),
            Side::Server => self.server.clone(),
        };
        (host, self.port, side)
    }
}

type Application = (Host, u16, Side);

#[derive(Debug, Default)]
pub(super) struct Blocking(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    known: HashMap<Application, Record>,
    order: VecDeque<Application>,
}

/// What was seen of an application.
#[derive(Debug, Default)]
struct Record {
    refused: u32,
    /// Some of its connections are not blocking, so that nothing is known of the next.
    is_mixed: bool,
}

impl Seen {
    fn record(&mut self, application: Application) -> &mut Record {
        if !self.known.contains_key(&application) {
            if self.order.len() == REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(application.clone());
        }
        self.known.entry(application).or_default()
    }
}

impl Blocking {
    /// Whether an application of the flow is known to block.
    pub(super) fn knows(&self, ends: &Ends) -> bool {
        let seen = self.seen();
        let blocks = |side| {
            let record = seen.known.get(&ends.application(side));
            record.is_some_and(|record| record.refused >= CERTAIN && !record.is_mixed)
        };
        blocks(Side::Client) || blocks(Side::Server)
    }

    /// A socket of one side's application was found to be blocking.
    pub(super) fn remember(&self, ends: &Ends, side: Side) {
        self.seen().record(ends.application(side)).refused += 1;
    }

    /// Neither side's was.
    pub(super) fn joined(&self, ends: &Ends) {
        let mut seen = self.seen();
        for side in [Side::Client, Side::Server] {
            seen.record(ends.application(side)).is_mixed = true;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: u8, port: u16) -> Ends {
        let address = |last| Host::Address([10, 0, 0, last].into());
        Ends {
            client: address(client),
            server: address(200),
            port,
        }
    }

    fn block(blocking: &Blocking, ends: &Ends, side: Side) {
        (0..CERTAIN).for_each(|_| blocking.remember(ends, side));
    }

    #[test]
    fn one_side_of_one_port_is_remembered_when_it_is_certain() {
        let blocking = Blocking::default();
        (1..CERTAIN).for_each(|_| blocking.remember(&ends(1, 80), Side::Client));
        assert!(!blocking.knows(&ends(1, 80)));
        blocking.remember(&ends(1, 80), Side::Client);
        assert!(blocking.knows(&ends(1, 80)));
        assert!(!blocking.knows(&ends(2, 80)) && !blocking.knows(&ends(1, 81)));
        block(&blocking, &ends(1, 81), Side::Server);
        assert!(blocking.knows(&ends(2, 81)) && !blocking.knows(&ends(2, 80)));
    }

    /// One that has a blocking connection for control and others for its data, say.
    #[test]
    fn an_application_with_sockets_of_both_kinds_is_asked_each_time() {
        let blocking = Blocking::default();
        blocking.remember(&ends(1, 80), Side::Server);
        blocking.joined(&ends(1, 80));
        block(&blocking, &ends(1, 80), Side::Server);
        assert!(!blocking.knows(&ends(1, 80)));
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let blocking = Blocking::default();
        for port in 0..=REMEMBERED as u16 {
            block(&blocking, &ends(1, port), Side::Client);
        }
        let seen = blocking.seen();
        assert_eq!((seen.known.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
        drop(seen);
        assert!(!blocking.knows(&ends(1, 0)) && blocking.knows(&ends(1, 1)));
    }
}
