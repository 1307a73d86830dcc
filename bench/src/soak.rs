//! `underpass-bench soak`: whether a proxy of HTTP grows under a load that goes on.
//!
//! Piece by piece the load is HTTP/1.1, HTTP/2, gRPC and long answers in turn, each on connections of its own. After each piece, with no connection
//! open, the proxy's resident memory is read once it has settled. What it has at most in the last quarter of the pieces is held against the
//! same of the first: caches fill in the first, a leak grows in all.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::OURS;
use crate::load::requests::{Protocol, Requests, Tools};
use crate::memory;
use crate::place::Place;
use crate::results::{self, Params, Row};
use crate::system::{self, Programs, System, THREADS, Task};
use crate::topology::free_port;

/// The loads that take turns.
const LOADS: [Requests; 4] = [
    requests(Protocol::Http1, 64, 1, 1024),
    requests(Protocol::H2, 64, 8, 1024),
    requests(Protocol::Grpc, 64, 8, 1024),
    requests(Protocol::Http1, 16, 1, 1024 * 1024),
];
/// How long each turn lasts.
const PIECE: Duration = Duration::from_secs(10);
/// What the memory at the end may be of that at the beginning, beside [`NOISE_KB`].
const GROWTH: f64 = 1.05;
/// Pages of the program and of the allocator that come and go.
const NOISE_KB: f64 = 1024.0;

const fn requests(protocol: Protocol, connections: usize, streams: usize, bytes: usize) -> Requests {
    Requests {
        secured: false,
        protocol,
        connections,
        streams,
        bytes,
        rate: 0,
    }
}

/// Arguments of `soak`.
#[derive(clap::Args, Debug)]
pub(crate) struct Soak {
    /// How long, in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Where results.json and the proxy's configuration and log go.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    tools: Tools,
}

impl Soak {
    /// Loads the proxy and says how its memory went; an error if it grew.
    pub(crate) fn run(self) -> Result<()> {
        fs::create_dir_all(self.out.join("run"))?;
        let directory = self.out.join("run").canonicalize()?;
        let servers = memory::servers(&[1], true, &directory)?;
        let (_, destination) = servers.first().context("a server")?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let task = Task {
            place: &Place::default(),
            threads: THREADS,
            listen,
            destination: *destination,
            admin_port: free_port()?,
            directory: &directory,
            name: "soak".to_owned(),
        };
        let system: System = OURS.parse()?;
        let proxy = system::start(&system, &self.programs, &task)?.context("a proxy to measure")?;
        let (mut settled_kb, mut answered) = (Vec::new(), 0);
        let begun = Instant::now();
        for load in LOADS.iter().cycle() {
            if begun.elapsed() >= Duration::from_secs(self.seconds) {
                break;
            }
            let times = (0.0, PIECE.as_secs_f64());
            answered += load
                .measure(&self.tools, &Place::default(), listen, &directory, times)?
                .operations;
            settled_kb.push(proxy.settled_rss_kb()?);
            eprintln!("{answered} requests, {} kB", settled_kb[settled_kb.len() - 1]);
        }
        let (first, last) = quarters(&settled_kb)?;
        let row = |metric: &str, unit: &str, value: f64| Row {
            system: OURS.to_owned(),
            scenario: "soak".to_owned(),
            params: Params::new().with("seconds", self.seconds),
            round: 1,
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            value,
        };
        let rows = vec![
            row("requests", "1", answered as f64),
            row("first_rss_kb", "kB", first),
            row("last_rss_kb", "kB", last),
        ];
        results::replace(&self.out.join("results.json"), rows)?;
        println!("{answered} requests; at most {first} kB after each of the first pieces, {last} kB after the last");
        if last > first * GROWTH + NOISE_KB {
            bail!("the proxy has grown from {first} to {last} kB");
        }
        Ok(())
    }
}

/// The most that the first and the last quarter of the pieces left.
fn quarters(settled_kb: &[u64]) -> Result<(f64, f64)> {
    let quarter = settled_kb.len() / 4;
    ensure!(quarter > 0, "too short: four pieces of {PIECE:?} are needed at least");
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or_default() as f64;
    Ok((
        most(&settled_kb[..quarter]),
        most(&settled_kb[settled_kb.len() - quarter..]),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_quarter_is_held_against_the_first() {
        assert_eq!(quarters(&[5, 9, 7, 7, 7, 7, 30, 20]).unwrap(), (9.0, 30.0));
        assert!(quarters(&[1, 2, 3]).is_err());
    }
}
