//! Root inside an enrolled pod, who does not want to be captured.
//!
//! Whatever it tries is either policed (the server sees who it is, and the proxy has it in its log) or refused; where policy lets nobody
//! through, nothing arrives: no connection, no byte, no SYN. And it never concerns another pod.

mod connecting;
mod packets;
mod taking;

use std::net::SocketAddr;

use serde_json::Value;
use underpass_tests::{Host, Need, Process, Server, available};

use crate::place::{DENY_ALL, PORT, PROGRAM_DEADLINE, Place, VIP, VIP6, address};

/// Of TCP to a server; `barrier` of what is sent behind a packet that must not arrive.
const WATCH: &str = "table inet watch {
  counter syns { }
  counter segments { }
  counter barrier { }
  chain arriving {
    type filter hook prerouting priority -300
    iif lo accept
    tcp flags & (syn | ack) == syn counter name syns
    meta l4proto tcp counter name segments
    udp dport 9999 counter name barrier
  }
}";

/// A place where an adversary is, and the servers that it wants to get at.
struct Battle {
    place: Place,
    servers: Vec<Server>,
}

impl Battle {
    fn start(policed: bool) -> Option<Self> {
        if !available(&[Need::Program("nft"), Need::Program("ss")]) {
            return None;
        }
        let place = Place::start(|hosts| {
            let config = hosts.config("");
            if policed {
                config.policy("mesh/nothing", DENY_ALL)
            } else {
                config
            }
        })?;
        let servers = [&*place.server, &place.remote]
            .into_iter()
            .flat_map(|host| [host.at(PORT), host.at6(PORT)].map(|at| Server::start_at(host, at)))
            .collect();
        for host in [&*place.server, &place.remote] {
            nft(&place, host, WATCH);
        }
        Some(Self { place, servers })
    }

    fn targets(&self) -> Vec<SocketAddr> {
        let direct = self.servers.iter().map(Server::address);
        direct.chain([VIP, VIP6].map(address)).collect()
    }

    fn accepted(&self) -> usize {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// Nothing has come through, by any account.
    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(self.accepted(), 0, "no server has accepted anything");
        assert_eq!(
            self.servers.iter().map(Server::received).sum::<u64>(),
            0,
            "or read a byte"
        );
        for host in [&*self.place.server, &self.place.remote] {
            assert_eq!(arrived(&self.place, host).syns, 0, "a SYN has reached {}", host.ip());
        }
    }
}

fn nft(place: &Place, host: &Host, rules: &str) {
    let mut command = Process::command("nft");
    command.arg(rules);
    Process::run(place.node.world(), host, "nft", command, PROGRAM_DEADLINE);
}

/// Packets that have arrived at a host, by what they are.
#[derive(Debug)]
struct Arrived {
    syns: u64,
    segments: u64,
    barrier: u64,
}

fn arrived(place: &Place, host: &Host) -> Arrived {
    let mut command = Process::command("nft");
    command.args(["-j", "list", "counters", "table", "inet", "watch"]);
    let said = Process::run(place.node.world(), host, "nft", command, PROGRAM_DEADLINE);
    let list: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let counters = list["nftables"].as_array().expect("a list");
    let packets = |name: &str| {
        let mut named = counters.iter().filter(|entry| entry["counter"]["name"] == name);
        let packets = named.next().and_then(|entry| entry["counter"]["packets"].as_u64());
        packets.unwrap_or_else(|| panic!("no counter {name}: {said}"))
    };
    Arrived {
        syns: packets("syns"),
        segments: packets("segments"),
        barrier: packets("barrier"),
    }
}
