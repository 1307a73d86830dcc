//! The one place where the proxy asks policy about a connection: new ones (`upstream`) and open ones when the configuration has
//! changed (`node`) are judged by the same facts.

use std::net::SocketAddr;

use underpass_config::{Config, ConnectionFacts, Verdict, Workload};

use crate::source::Source;

/// The verdict of `config` on a connection of `source` to `address`, where `destination` is. A destination that is no workload
/// of the mesh has no policies.
pub fn judge(config: &Config, source: &Source, address: SocketAddr, destination: Option<&Workload>) -> Verdict {
    let Some(destination) = destination else {
        return Verdict::allowed();
    };
    let facts = ConnectionFacts {
        source: source.identity(),
        source_ip: source.ip(),
        destination: address,
    };
    config.mesh.authorize(&facts, destination)
}
