//! `underpass-bench mesh-scale`: what a large mesh costs a node that takes it from a control plane, over a real stream (delta ADS, TLS).
//!
//! Time and memory until it has the mesh, CPU and time of one changed endpoint, and CPU when nothing changes. Figures are this machine's; what is asserted
//! is far from what any machine does by itself: a change must cost what a change costs, not what the mesh does (25 ms and more for 110 000 resources).

mod control_plane;
mod synthetic;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use underpass_tests::Authority;

use crate::comparison::Summary;
use crate::load::Figure;
use crate::place::Place;
use crate::process::Process;
use crate::results::{self, Params, Row};
use crate::system::{Kind, Programs};
use crate::topology::free_port;
use crate::{admin, report};
use control_plane::ControlPlane;
use synthetic::Synthetic;

const DEADLINE: Duration = Duration::from_secs(120);
/// How long CPU is measured for while nothing changes.
const REST: Duration = Duration::from_secs(10);
/// What one changed endpoint may cost; the goal is a millisecond.
const MOST_CPU_PER_CHANGE: Duration = Duration::from_millis(5);
/// What a node at rest may use of a core.
const MOST_AT_REST: f64 = 0.01;

/// Arguments of `mesh-scale`.
#[derive(clap::Args, Debug)]
pub(crate) struct MeshScale {
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Endpoints that change, one after the other.
    #[arg(long, default_value_t = 1_000)]
    changes: u32,
    /// Where results.json and the configurations and logs go.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

impl MeshScale {
    /// Measures, writes the results and prints them.
    ///
    /// # Errors
    /// When a change or rest costs more than any machine explains, or the node has not what it was sent.
    pub(crate) fn run(self) -> Result<()> {
        let directory = std::path::absolute(self.out.join("run"))?;
        fs::create_dir_all(&directory)?;
        let figures = self.measure(&directory)?;
        let params = Params::new()
            .with("services", u64::from(self.services))
            .with("endpoints", u64::from(self.endpoints))
            .with("changes", u64::from(self.changes));
        let row = |figure: Figure| Row {
            system: report::OURS.to_owned(),
            scenario: "mesh-scale".to_owned(),
            params: params.clone(),
            round: 1,
            metric: figure.metric,
            unit: figure.unit,
            value: figure.value,
        };
        let rows: Vec<Row> = figures.into_iter().map(row).collect();
        print!("{}", report::single("mesh-scale", &rows));
        results::replace(&self.out.join("results.json"), rows)?;
        Ok(())
    }

    fn measure(&self, directory: &Path) -> Result<Vec<Figure>> {
        let mesh = Synthetic {
            services: self.services,
            endpoints: self.endpoints,
        };
        let authority = Authority::new(&directory.join("mesh-scale"));
        let control_plane = ControlPlane::start(mesh, &authority.issue_to_host("localhost"))?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let (mut node, begun) = self.start(&control_plane, &authority, admin, directory)?;
        control_plane.wait_until_synced()?;
        let acknowledged = begun.elapsed();
        node.wait_until("/ready", DEADLINE, |_| Ok(admin::is_ready(admin)))?;
        let ready = begun.elapsed();
        self.assert_complete(admin)?;
        let mut figures = vec![
            Figure::new("acknowledged_ms", "ms", acknowledged.as_secs_f64() * 1e3),
            Figure::new("ready_ms", "ms", ready.as_secs_f64() * 1e3),
            Figure::new("sync_cpu_ms", "ms", node.cpu_time()?.as_secs_f64() * 1e3),
            Figure::new("rss_kb", "kB", node.settled_rss_kb()? as f64),
            Figure::new("peak_rss_kb", "kB", node.memory_kb("VmHWM")? as f64),
        ];
        figures.extend(self.changes(&control_plane, &node)?);
        self.assert_complete(admin)?;
        figures.push(Figure::new("rss_kb_after_changes", "kB", node.settled_rss_kb()? as f64));
        figures.push(at_rest(&node)?);
        Ok(figures)
    }

    /// Starts a node that has no more than its control plane in its configuration; answers when.
    fn start(
        &self,
        control_plane: &ControlPlane,
        authority: &Authority,
        admin: SocketAddr,
        directory: &Path,
    ) -> Result<(Process, Instant)> {
        let token = directory.join("mesh-scale/token");
        fs::write(&token, "of nobody")?;
        let yaml = format!(
            "node:\n  name: node-0\n  admin: \"{admin}\"\n  istiod: {{address: \"{}\", server_name: localhost, roots: {:?}, token: {token:?}}}\n",
            control_plane.address,
            authority.roots(),
        );
        let path = directory.join("mesh-scale.yaml");
        fs::write(&path, yaml)?;
        let mut command = Place::default().command(&self.programs.find(Kind::Underpass)?)?;
        command.arg("run").arg("--config").arg(path);
        let begun = Instant::now();
        Ok((Process::start(command, &directory.join("mesh-scale.log"))?, begun))
    }

    fn assert_complete(&self, admin: SocketAddr) -> Result<()> {
        let (workloads, services) = admin::mesh(admin)?;
        let expected = (u64::from(self.services * self.endpoints), u64::from(self.services));
        ensure!(
            (workloads, services) == expected,
            "the node has {workloads} workloads and {services} services instead of {expected:?}"
        );
        Ok(())
    }

    /// One endpoint after the other, each sent when the one before is acknowledged.
    fn changes(&self, control_plane: &ControlPlane, node: &Process) -> Result<Vec<Figure>> {
        let cpu = node.cpu_time()?;
        let mut times = Vec::new();
        for change in 0..self.changes {
            let begun = Instant::now();
            control_plane.change(change)?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let each = (node.cpu_time()? - cpu) / self.changes.max(1);
        ensure!(
            each <= MOST_CPU_PER_CHANGE,
            "one changed endpoint costs {each:?} of CPU, and may cost {MOST_CPU_PER_CHANGE:?}: does it cost what the mesh costs?"
        );
        let mut figures = vec![Figure::new("change_cpu_us", "us", each.as_secs_f64() * 1e6)];
        if let Some(times) = Summary::of(times) {
            figures.push(Figure::new("change_us", "us", times.median));
            figures.push(Figure::new("change_most_us", "us", times.most));
        }
        Ok(figures)
    }
}

/// The share of a core that a node uses when nothing changes.
fn at_rest(node: &Process) -> Result<Figure> {
    let (cpu, begun) = (node.cpu_time()?, Instant::now());
    thread::sleep(REST);
    let share = (node.cpu_time()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    ensure!(
        share <= MOST_AT_REST,
        "a node at rest uses {:.1} % of a core, and may use {:.1} %",
        share * 100.0,
        MOST_AT_REST * 100.0
    );
    Ok(Figure::new("rest_cpu_percent", "%", share * 100.0))
}
