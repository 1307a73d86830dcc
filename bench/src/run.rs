//! `underpass-bench run`: interleaved rounds of short samples.
//!
//! A round visits every case, and in each case every system, in an order that rotates from round to round; so whatever
//! the machine does over time hits all systems alike. Proxies are started anew for each round and placement, so that
//! no system keeps one lucky (or unlucky) memory layout for a whole run. Idle proxies cost nothing measurable.

use std::fs;
use std::path::{self, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::admin::TierBytes;
use crate::ballast::Ballast;
use crate::captured::{self, Captured};
use crate::load::programs::Database;
use crate::load::requests::Tools;
use crate::load::{Figure, Measured, Work};
use crate::place::{self, Place};
use crate::process::Process;
use crate::results::{self, Row};
use crate::scenarios::{self, Family, PLAIN, Placement, TUNNEL, placements};
use crate::system::{AGAIN, Kind, Programs, System, Task, start};
use crate::topology::Topology;
use crate::tunnelled::{self, Tunnelled};
use crate::{machine, report};

/// Share of the machine's CPU time that went to none of the three parties of a sample: how disturbed it was.
pub(crate) const OTHERS: &str = "others_pct";

/// Arguments of `run`. Lists and the number of rounds may also come from the environment, where empty means the default.
#[derive(clap::Args, Debug)]
pub(crate) struct Run {
    /// Systems to compare [default: all that the scenarios are for; capture and tunnels take root].
    #[arg(long, env = "SYSTEMS", default_value = "")]
    systems: String,
    /// Scenarios to run, all of one kind: l4-*, hbone-*, http1,h2,grpc, or http1-secured [default: all l4-*].
    #[arg(long, env = "SCENARIO", default_value = scenarios::DEFAULT)]
    scenarios: String,
    /// Rounds.
    #[arg(long, env = "ROUNDS", default_value = "7")]
    rounds: String,
    /// Seconds that each sample measures.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds of load before each sample that are discarded.
    #[arg(long, default_value_t = 0.25)]
    warmup: f64,
    /// Also runs Underpass a second time as `underpass-relay-b`, to show what difference noise makes.
    #[arg(long)]
    aa: bool,
    /// Holds free memory meanwhile, if the host of this virtual machine takes it back; that takes up to half a minute.
    #[arg(long)]
    hold_memory: bool,
    /// Loopback instead of network namespaces, also as root.
    #[arg(long)]
    loopback: bool,
    /// Where results.json, report.md and the systems' configurations and logs go.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    tools: Tools,
}

impl Run {
    /// Measures, writes the results and the report, prints the report.
    pub(crate) fn run(self) -> Result<()> {
        let isolated = Topology::may_be_isolated(self.loopback);
        let systems = self.systems(isolated)?;
        let cases = self.cases()?;
        let rounds: u32 = or_default(&self.rounds, "7")
            .parse()
            .context("ROUNDS must be a number")?;
        ensure!(
            rounds > 0 && self.seconds > 0.0,
            "ROUNDS and --seconds must be more than 0"
        );
        // A proxy's configuration takes whole paths only.
        let work_directory = path::absolute(self.out.join("run"))?;
        fs::create_dir_all(&work_directory).with_context(|| format!("creating {}", work_directory.display()))?;
        let machine = machine::describe(&systems, &self.programs)?;
        let needs_database = self.scenarios().any(scenarios::needs_database);
        let database = needs_database.then(Database::create).transpose()?;
        let mut topology = Topology::new(self.loopback, &work_directory)?;
        eprintln!("{}\n{}", machine, topology.description());
        let ballast = self.hold_memory.then(Ballast::take).transpose()?;
        if let Some(description) = ballast.as_ref().and_then(Ballast::description) {
            eprintln!("{description}");
        }
        let mut rows = Vec::new();
        for round in 1..=rounds {
            for placement in placements()? {
                let cases: Vec<Work> = cases
                    .iter()
                    .filter(|(_, at)| *at == placement)
                    .map(|(work, _)| *work)
                    .collect();
                if cases.is_empty() {
                    continue;
                }
                eprintln!("round {round} of {rounds}, {}", placement.name());
                let mut stage = Stage::set(
                    &mut topology,
                    &systems,
                    &self.programs,
                    placement,
                    &work_directory,
                    round,
                )?;
                stage.database = database.as_ref();
                stage.tools = Some(&self.tools);
                for work in cases {
                    rows.extend(stage.samples(work, self.warmup, self.seconds)?);
                }
            }
        }
        let all = results::replace(&self.out.join("results.json"), rows)?;
        let text = report::write(&all, &machine.to_string(), topology.description());
        fs::write(self.out.join("report.md"), &text)?;
        print!("{text}");
        Ok(())
    }

    fn systems(&self, isolated: bool) -> Result<Vec<System>> {
        let family = Family::of(self.scenarios())?;
        let default = family.systems(isolated)?;
        let mut systems: Vec<System> = list(&self.systems, default).map(str::parse).collect::<Result<_>>()?;
        if self.aa && family == Family::Plain {
            let again: System = format!("underpass-relay{AGAIN}").parse()?;
            if !systems.contains(&again) {
                systems.push(again);
            }
        }
        Ok(systems)
    }

    fn scenarios(&self) -> impl Iterator<Item = &str> {
        list(&self.scenarios, scenarios::DEFAULT)
    }

    fn cases(&self) -> Result<Vec<(Work, Placement)>> {
        let cases: Vec<_> = self.scenarios().map(scenarios::cases).collect::<Result<_>>()?;
        Ok(cases.into_iter().flatten().collect())
    }
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.trim().is_empty() { default } else { text.trim() }
}

fn list<'a>(text: &'a str, default: &'a str) -> impl Iterator<Item = &'a str> {
    or_default(text, default)
        .split([',', ' '])
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// Everything that is running during one placement of one round.
struct Stage<'a> {
    topology: &'a Topology,
    server_port: u16,
    placement: Placement,
    round: u32,
    directory: &'a Path,
    running: Vec<Running>,
    tunnels: bool,
    database: Option<&'a Database>,
    tools: Option<&'a Tools>,
}

struct Running {
    label: String,
    target: std::net::SocketAddr,
    client: Place,
    server: Place,
    proxy: Proxies,
}

/// What is between client and server.
enum Proxies {
    None,
    One(Process),
    Two(Vec<Process>),
    Captured(Box<Captured>),
    Tunnelled(Box<Tunnelled>),
}

impl Proxies {
    fn processes(&self) -> Vec<&Process> {
        match self {
            Proxies::None => Vec::new(),
            Proxies::One(process) => vec![process],
            Proxies::Two(processes) => processes.iter().collect(),
            Proxies::Tunnelled(tunnelled) => tunnelled.processes(),
            Proxies::Captured(captured) => captured.processes().to_vec(),
        }
    }

    fn cpu_time(&self) -> Result<Duration> {
        self.processes().into_iter().map(Process::cpu_time).sum()
    }

    /// By tier, where there are tiers.
    fn tier_bytes(&self) -> Result<Option<TierBytes>> {
        match self {
            Proxies::Captured(captured) if captured.has_kernel_tier => captured.tier_bytes().map(Some),
            _ => Ok(None),
        }
    }

    fn memory_kb(&self) -> Result<u64> {
        self.processes()
            .into_iter()
            .map(|process| process.memory_kb("VmRSS"))
            .sum()
    }
}

impl<'a> Stage<'a> {
    fn set(
        topology: &'a mut Topology,
        systems: &[System],
        programs: &Programs,
        placement: Placement,
        directory: &'a Path,
        round: u32,
    ) -> Result<Stage<'a>> {
        let cores = place::cores()?;
        let (first, second, node) = match placement {
            Placement::CrossCore => (cores[0], cores[1], &cores[..2]),
            Placement::OneCore => (cores[0], cores[0], &cores[..1]),
            Placement::OwnCore => (cores[0], cores[0], &cores[1..2]),
        };
        let server_port = topology.port()?;
        let node_cores = node;
        let node = topology.node.on(node_cores);
        let mut running = Vec::new();
        for system in systems {
            let (listen, admin_port) = (topology.port()?, topology.port()?);
            let listen = topology.node_at(listen);
            let task = Task {
                place: &node,
                threads: placement.threads(),
                listen,
                destination: topology.server_at(server_port),
                admin_port,
                directory,
                name: format!("{system}-{}", placement.name()),
            };
            let target = match system.kind {
                kind if kind == Kind::Direct || kind.captures() => topology.server_at(server_port),
                Kind::Hbone => topology.server_at(server_port),
                _ => listen,
            };
            let (mut client, mut server) = (topology.client.on(&[first]), topology.server.on(&[second]));
            let captured_task = |program| captured::Task {
                program,
                workers: placement.threads(),
                cores: node_cores,
                directory,
                name: task.name.clone(),
                admin_port,
                has_kernel_tier: matches!(system.kind, Kind::Kernel | Kind::KernelInMesh),
                is_in_mesh: system.kind == Kind::KernelInMesh,
            };
            let proxy = match system.kind {
                Kind::Captured | Kind::Kernel | Kind::KernelInMesh => {
                    let captured = Captured::start(&captured_task(&programs.find(system.kind)?))?;
                    client = captured.pod(&captured.topology.client, &[first])?;
                    server = captured.pod(&captured.topology.server, &[second])?;
                    Proxies::Captured(Box::new(captured))
                }
                Kind::Hbone => {
                    let tunnelled = Tunnelled::start(&captured_task(&programs.find(system.kind)?), topology.port()?)?;
                    (client, server) = (tunnelled.client(&[first])?, tunnelled.server(&[second])?);
                    Proxies::Tunnelled(Box::new(tunnelled))
                }
                Kind::EnvoyHbone => {
                    let gateway = topology.port()?;
                    let addresses = (listen, topology.node_at(gateway), task.destination);
                    Proxies::Two(tunnelled::envoys(programs, &node, addresses, directory, &task.name)?)
                }
                _ => start(system, programs, &task)?.map_or(Proxies::None, Proxies::One),
            };
            running.push(Running {
                label: system.label.clone(),
                target,
                client,
                server,
                proxy,
            });
        }
        Ok(Stage {
            topology,
            server_port,
            placement,
            round,
            directory,
            running,
            tunnels: systems.iter().any(|system| system.kind.tunnels()),
            database: None,
            tools: None,
        })
    }

    /// One sample of each system, beginning with another one each round and in turns forwards and backwards, so that none
    /// always follows the same other.
    fn samples(&mut self, work: Work, warmup: f64, seconds: f64) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for position in order(self.running.len(), self.round) {
            let system = &self.running[position];
            let figures = self
                .sample(system, work, warmup, seconds)
                .with_context(|| format!("{} of {}, round {}", work.scenario(), system.label, self.round))?;
            rows.extend(figures.into_iter().map(|figure| Row {
                system: system.label.clone(),
                scenario: match self.tunnels {
                    true => work.scenario().replace(PLAIN, TUNNEL),
                    false => work.scenario().to_owned(),
                },
                params: work.params().with("placement", self.placement.name()),
                round: self.round,
                metric: figure.metric,
                unit: figure.unit,
                value: figure.value,
            }));
        }
        Ok(rows)
    }

    fn sample(&self, system: &Running, work: Work, warmup: f64, seconds: f64) -> Result<Vec<Figure>> {
        let (begin, busy) = (Instant::now(), machine::busy()?);
        let server = self.serve(system, work)?;
        let before = system.proxy.cpu_time()?;
        let tiers_before = system.proxy.tier_bytes()?;
        let measured = self.load(system, work, warmup, seconds)?;
        let mut figures = measured.figures;
        let mut ours = measured.client_cpu_s + server.cpu_time()?.as_secs_f64();
        if !matches!(system.proxy, Proxies::None) {
            let cpu = (system.proxy.cpu_time()? - before).as_secs_f64();
            ours += cpu;
            figures.push(match work {
                Work::Stream { .. } => Figure::new("cpu_ms_per_gb", "ms/GB", cpu * 1e3 / (measured.bytes as f64 / 1e9)),
                _ => Figure::new("cpu_us_per_op", "us", cpu * 1e6 / measured.operations as f64),
            });
            figures.push(Figure::new("rss_kb", "kB", system.proxy.memory_kb()? as f64));
        }
        if let (Some(before), Some(after)) = (tiers_before, system.proxy.tier_bytes()?) {
            let (kernel, relay) = (after.kernel - before.kernel, after.relay - before.relay);
            figures.push(Figure::new(
                "kernel_share",
                "",
                kernel as f64 / (kernel + relay).max(1) as f64,
            ));
        }
        let others = (machine::busy()? - busy).as_secs_f64() - ours;
        let available = begin.elapsed().as_secs_f64() * place::cores()?.len() as f64;
        figures.push(Figure::new(OTHERS, "%", 100.0 * (others / available).max(0.0)));
        Ok(figures)
    }

    fn load(&self, system: &Running, work: Work, warmup: f64, seconds: f64) -> Result<Measured> {
        if let Work::Program { program } = work {
            return program.measure(&system.client, system.target, self.directory);
        }
        if let Work::Requests { requests } = work {
            let tools = self.tools.context("the run has said where its programs are")?;
            return requests.measure(tools, &system.client, system.target, self.directory, (warmup, seconds));
        }
        let mut command = system.client.own("load")?;
        command
            .args([
                "--target",
                &system.target.to_string(),
                "--work",
                &serde_json::to_string(&work)?,
            ])
            .args(["--warmup", &warmup.to_string(), "--seconds", &seconds.to_string()]);
        let client = Process::start(command, &self.directory.join("client.log"))?;
        serde_json::from_str(&client.finish()?).context("the client's report")
    }

    fn serve(&self, system: &Running, work: Work) -> Result<Process> {
        let address = self.topology.server_at(self.server_port);
        if let Work::Program { program } = work {
            let database = self.database.context("the programs' scenario has made its database")?;
            return program.serve(&system.server, address, database, self.directory);
        }
        let service = work.service().context("a service of our own")?;
        let mut command = system.server.own("serve")?;
        command
            .args(["--address", &address.to_string()])
            .args(["--service", &serde_json::to_string(&service)?]);
        let mut server = Process::start(command, &self.directory.join("server.log"))?;
        server.line()?;
        Ok(server)
    }
}

/// The order in which `count` systems are visited in a round.
fn order(count: usize, round: u32) -> Vec<usize> {
    let rotated = (0..count).map(|position| (position + round as usize) % count);
    if round.is_multiple_of(2) {
        rotated.rev().collect()
    } else {
        rotated.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_rotates_and_turns_round() {
        assert_eq!(
            [1, 2, 3].map(|round| order(3, round)),
            [vec![1, 2, 0], vec![1, 0, 2], vec![0, 1, 2]]
        );
    }

    #[test]
    fn an_empty_variable_means_the_default() {
        assert_eq!(list("", "a,b").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(list("x, y", "a").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(or_default(" ", "7"), "7");
    }
}
