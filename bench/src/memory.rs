//! `underpass-bench memory`: what a fresh proxy and its idle connections cost, in the process and in the kernel.
//!
//! Each connection carries one small round trip (a request of HTTP/1.1, with a proxy of HTTP) and is then idle. A proxy needs two descriptors per connection, so when
//! more are asked for than the descriptor limit allows, they are spread over several proxy processes (and as many
//! client and server processes), and the figure is still per connection.
//!
//! Every connection's four sockets (client, proxy twice, server) are on this machine, so the kernel's memory is
//! measured a second time for the same connections without a proxy; the difference is the proxy's share. A proxy of HTTP has few connections to its
//! endpoint, and only its own memory is told.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::http;
use crate::load::Figure;
use crate::load::serve::Service;
use crate::place::{self, Place};
use crate::process::{Process, kilobytes};
use crate::report;
use crate::results::{self, Params, Row};
use crate::system::{self, Kind, Programs, System, THREADS, Task};
use crate::topology::free_port;

/// Descriptors that a proxy needs for itself: listeners, event loops, logs, pipes.
const OWN_DESCRIPTORS: u64 = 200;
/// Most connections between one pair of addresses and one port: below the 28 232 of Linux's default ephemeral range.
const PER_ADDRESS_PAIR: u64 = 20_000;
/// Slab caches that connections live in. Others are left out of the sum, because on a machine where anything else runs
/// they change by more than ten thousand connections do (inodes of /proc, dentries, mappings).
const SOCKET_CACHES: [&str; 9] = [
    "TCP",
    "sock_inode_cache",
    "filp",
    "eventpoll_epi",
    "eventpoll_pwq",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "request_sock_TCP",
    "skbuff_head_cache",
];

/// Arguments of `memory`.
#[derive(clap::Args, Debug)]
pub(crate) struct Memory {
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// Systems to measure, one after the other.
    #[arg(long, value_delimiter = ',', default_values = [report::OURS, http::OURS])]
    systems: Vec<System>,
    /// Where results.json and the systems' configurations and logs go.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

impl Memory {
    /// Measures, writes the results and prints them.
    pub(crate) fn run(self) -> Result<()> {
        let directory = self.out.join("run");
        fs::create_dir_all(&directory)?;
        let capacity = ((place::descriptor_limit()? - OWN_DESCRIPTORS) / 2).min(PER_ADDRESS_PAIR);
        let shares = shares(self.connections, capacity);
        if shares.len() > 1 {
            eprintln!(
                "{} connections don't fit one process here: spread over {}",
                self.connections,
                shares.len()
            );
        }
        let mut rows = Vec::new();
        let without = kernel_cost_without_proxy(&shares, &directory)?;
        for system in self.systems.iter().filter(|system| system.kind != Kind::Direct) {
            eprintln!("{system}");
            let figures = self.measure(system, &shares, &without, &directory)?;
            let params = Params::new()
                .with("connections", self.connections)
                .with("processes", shares.len() as u64);
            rows.extend(figures.into_iter().map(|figure| Row {
                system: system.label.clone(),
                scenario: "memory".to_owned(),
                params: params.clone(),
                round: 1,
                metric: figure.metric,
                unit: figure.unit,
                value: figure.value,
            }));
        }
        print!("{}", report::single("memory", &rows));
        results::replace(&self.out.join("results.json"), rows)?;
        Ok(())
    }

    fn measure(&self, system: &System, shares: &[u64], without: &Kernel, directory: &Path) -> Result<Vec<Figure>> {
        let takes_requests = system.kind.takes_requests();
        let servers = servers(shares, takes_requests, directory)?;
        let mut proxies = Vec::new();
        for (i, (_, server)) in servers.iter().enumerate() {
            proxies.push(self.proxy(system, *server, &format!("{system}-memory-{i}"), directory)?);
        }
        let processes: Vec<&Process> = proxies.iter().map(|(process, _)| process).collect();
        let idle = settled(&processes)?;
        let before = Kernel::read()?;
        let targets: Vec<SocketAddr> = proxies.iter().map(|(_, address)| *address).collect();
        let clients = clients(shares, &targets, takes_requests, directory)?;
        let open = settled(&processes)?;
        let with = Kernel::read()?.since(&before);
        for client in clients {
            client.finish()?;
        }
        wait_for_no_connections(targets.iter().chain(servers.iter().map(|(_, address)| address)))?;
        let after = settled(&processes)?;
        let per_connection =
            |metric: &str, kb: i64| Figure::new(metric, "B", kb as f64 * 1024.0 / self.connections as f64);
        let mut figures = vec![
            Figure::new("idle_rss_kb", "kB", idle as f64 / shares.len() as f64),
            per_connection("rss_bytes_per_connection", open as i64 - idle as i64),
            per_connection("rss_bytes_per_connection_after_close", after as i64 - idle as i64),
        ];
        if takes_requests {
            return Ok(figures);
        }
        eprintln!("{}", with.caches_per_connection(without, self.connections));
        figures.extend([
            per_connection("kernel_slab_bytes_per_connection", with.slab_kb - without.slab_kb),
            per_connection("kernel_slab_bytes_per_connection_direct", without.slab_kb),
            per_connection("machine_bytes_per_connection", with.used_kb - without.used_kb),
        ]);
        if !with.caches.is_empty() {
            let objects = with.objects_kb() - without.objects_kb();
            figures.push(per_connection("kernel_objects_bytes_per_connection", objects));
        }
        Ok(figures)
    }

    fn proxy(
        &self,
        system: &System,
        destination: SocketAddr,
        name: &str,
        directory: &Path,
    ) -> Result<(Process, SocketAddr)> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let task = Task {
            place: &Place::default(),
            threads: THREADS,
            listen,
            destination,
            admin_port: free_port()?,
            directory,
            name: name.to_owned(),
        };
        let process = system::start(system, &self.programs, &task)?.context("a proxy to measure")?;
        Ok((process, listen))
    }
}

/// Splits `connections` into as few equal shares as fit.
fn shares(connections: u64, capacity: u64) -> Vec<u64> {
    let count = connections.div_ceil(capacity).max(1);
    (0..count)
        .map(|i| connections / count + u64::from(i < connections % count))
        .collect()
}

/// A server for each share: of HTTP, or one that keeps what it is sent.
pub(crate) fn servers(shares: &[u64], take_requests: bool, directory: &Path) -> Result<Vec<(Process, SocketAddr)>> {
    let service = if take_requests { Service::Answers } else { Service::Keep };
    let mut servers = Vec::new();
    for i in 0..shares.len() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Place::default().own("serve")?;
        command
            .args(["--address", &address.to_string()])
            .args(["--service", &serde_json::to_string(&service)?]);
        let mut server = Process::start(command, &directory.join(format!("keep-{i}.log")))?;
        server.line()?;
        servers.push((server, address));
    }
    Ok(servers)
}

/// Opens every share from an address of its own; returns when all connections are open and used.
fn clients(shares: &[u64], targets: &[SocketAddr], ask: bool, directory: &Path) -> Result<Vec<Process>> {
    let mut clients = Vec::new();
    for (i, (share, target)) in shares.iter().zip(targets).enumerate() {
        let source = IpAddr::from([127, 0, 0, 2 + i as u8]);
        let mut command = Place::default().own("hold")?;
        command
            .args(["--target", &target.to_string(), "--source", &source.to_string()])
            .args(["--connections", &share.to_string()])
            .args(ask.then_some("--http"));
        let mut client = Process::start(command, &directory.join(format!("hold-{i}.log")))?;
        client.line().context("opening idle connections")?;
        clients.push(client);
    }
    Ok(clients)
}

fn kernel_cost_without_proxy(shares: &[u64], directory: &Path) -> Result<Kernel> {
    let servers = servers(shares, false, directory)?;
    let targets: Vec<SocketAddr> = servers.iter().map(|(_, address)| *address).collect();
    let before = Kernel::read()?;
    let clients = clients(shares, &targets, false, directory)?;
    let cost = Kernel::read()?.since(&before);
    for client in clients {
        client.finish()?;
    }
    wait_for_no_connections(targets.iter())?;
    Ok(cost)
}

/// Sum of the resident memory of the proxies, each once it has settled.
fn settled(proxies: &[&Process]) -> Result<u64> {
    proxies.iter().map(|proxy| proxy.settled_rss_kb()).sum()
}

/// Waits until no connection to or from these ports is left, so that the next measurement begins where this one did.
fn wait_for_no_connections<'a>(addresses: impl Iterator<Item = &'a SocketAddr>) -> Result<()> {
    let ports: Vec<String> = addresses.map(|address| format!(":{:04X}", address.port())).collect();
    let start = Instant::now();
    loop {
        let table = fs::read_to_string("/proc/net/tcp")?;
        let open = table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().skip(1).take(3).collect();
            matches!(fields[..], [local, remote, state] if state != "0A"
                && ports.iter().any(|port| local.ends_with(port) || remote.ends_with(port)))
        });
        // TIME_WAIT lasts a minute; whatever holds a connection longer than that is for the figures to show.
        if !open || start.elapsed() > Duration::from_secs(70) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Kernel memory of the whole machine, or a change of it.
#[derive(Debug)]
struct Kernel {
    /// `Slab` of /proc/meminfo: whole pages, so a cache that was filled before may hide some of what is used again.
    slab_kb: i64,
    /// The opposite of `MemAvailable`: everything, userspace included.
    used_kb: i64,
    /// Bytes of active objects by slab cache ([`SOCKET_CACHES`]); empty where /proc/slabinfo is not readable (it takes root).
    caches: BTreeMap<String, i64>,
}

impl Kernel {
    fn read() -> Result<Kernel> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let field = |name| -> Result<i64> {
            Ok(kilobytes(&meminfo, name).with_context(|| format!("no {name} in /proc/meminfo"))? as i64)
        };
        let caches = fs::read_to_string("/proc/slabinfo")
            .map(|text| slab_caches(&text))
            .unwrap_or_default();
        Ok(Kernel {
            slab_kb: field("Slab")?,
            used_kb: -field("MemAvailable")?,
            caches,
        })
    }

    fn since(mut self, before: &Kernel) -> Kernel {
        self.slab_kb -= before.slab_kb;
        self.used_kb -= before.used_kb;
        for (name, bytes) in &before.caches {
            *self.caches.entry(name.clone()).or_default() -= bytes;
        }
        self
    }

    fn objects_kb(&self) -> i64 {
        self.caches.values().sum::<i64>() / 1024
    }

    /// The proxy's share of each cache, in bytes per connection.
    fn caches_per_connection(&self, without: &Kernel, connections: u64) -> String {
        let share = |(name, bytes): (&String, &i64)| {
            let bytes = bytes - without.caches.get(name).copied().unwrap_or_default();
            format!("{name} {}", bytes / connections.max(1) as i64)
        };
        let shares: Vec<String> = self.caches.iter().map(share).collect();
        format!(
            "kernel objects of the proxy, bytes per connection: {}",
            shares.join(", ")
        )
    }
}

/// Bytes of active objects by cache that connections live in, from /proc/slabinfo (`name active_objs num_objs objsize …`).
fn slab_caches(slabinfo: &str) -> BTreeMap<String, i64> {
    slabinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next().filter(|name| SOCKET_CACHES.contains(name))?;
            let active: i64 = fields.next()?.parse().ok()?;
            let size: i64 = fields.nth(1)?.parse().ok()?;
            Some((name.to_owned(), active * size))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_evenly_over_as_few_processes_as_hold_them() {
        assert_eq!(shares(10_000, 20_000), [10_000]);
        assert_eq!(shares(10_001, 9_900), [5_001, 5_000]);
    }

    #[test]
    fn only_caches_that_connections_live_in_are_counted() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\nTCP  100 120 2304 14 8 : tunables\ndentry 5 5 192 21 1\n";
        assert_eq!(slab_caches(text), BTreeMap::from([("TCP".to_owned(), 230_400)]));
    }
}
