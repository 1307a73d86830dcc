//! How many connections there are to each endpoint, and what they do: told when it is asked for, by looking at each core's pool in turn.

use std::collections::HashMap;
use std::net::SocketAddr;

use underpass_config::Text;

use super::{Key, Pools};

/// What there is to one endpoint, of all cores. Connections of HTTP/1.1 that have a request, and those that are a tunnel's alone, belong to their requests: the
/// cluster's limits count them, with all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Connections of HTTP/1.1 that wait for a request.
    pub http1_idle: usize,
    /// Connections of HTTP/2.
    pub http2_connections: usize,
    /// Requests on these.
    pub http2_streams: usize,
    /// Requests that wait for one, of either kind.
    pub waiting: usize,
}

/// By cluster and endpoint.
pub type PoolUses = HashMap<(Text, SocketAddr), PoolUse>;

impl Pools {
    /// What there is to each endpoint.
    pub fn uses(&self) -> PoolUses {
        let mut uses = PoolUses::new();
        for core in 0..self.cores.len() {
            let pool = self.pool(core);
            for (key, idle) in pool.http1.counts() {
                of(&mut uses, key).http1_idle += idle;
            }
            for (key, waiting) in pool.handing.counts() {
                of(&mut uses, key).waiting += waiting;
            }
            for (key, group) in pool.http2.iter() {
                let (connections, streams, waiting) = group.used();
                let of_endpoint = of(&mut uses, key);
                of_endpoint.http2_connections += connections;
                of_endpoint.http2_streams += streams;
                of_endpoint.waiting += waiting;
            }
        }
        uses
    }
}

fn of<'u>(uses: &'u mut PoolUses, key: &Key) -> &'u mut PoolUse {
    uses.entry((key.cluster.clone(), key.address)).or_default()
}
