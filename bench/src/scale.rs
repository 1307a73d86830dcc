//! `underpass-bench scale`: what a large configuration costs the process, and whether connections notice updates.
//!
//! Two meshes by default. The large one (10 000 services × 10 endpoints) shows start-up, memory and how long a whole
//! rewritten file takes to be in force; the small one takes a thousand rewrites in a reasonable time. In both, new
//! connections are made all the while, at a constant rate, to a service of that mesh, some of whose endpoints come and
//! go with the updates. One endpoint's update inside the model is measured by an example of the `config` crate.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::comparison::Summary;
use crate::load::serve::Service;
use crate::load::{Figure, GREETING_SIZE, steady};
use crate::mesh::Mesh;
use crate::place::Place;
use crate::process::Process;
use crate::results::{self, Params, Row};
use crate::system::{Kind, Programs};
use crate::topology::free_port;
use crate::{admin, report};

/// Endpoints of the live service.
const LIVE: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 9), Ipv4Addr::new(127, 0, 0, 10)];
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `scale`.
#[derive(clap::Args, Debug)]
pub(crate) struct Scale {
    /// Meshes to load, as SERVICES×ENDPOINTS:UPDATES (an x will do).
    #[arg(long, value_delimiter = ',', default_value = "10000x10:20,100x10:1000")]
    meshes: Vec<Size>,
    /// New connections per second while updates are applied.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Where results.json and the configurations and logs go.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    services: u32,
    endpoints: u32,
    updates: u32,
}

impl std::str::FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Size> {
        let parse = || {
            let (mesh, updates) = text.split_once(':')?;
            let (services, endpoints) = mesh.split_once(['x', '×'])?;
            Some(Size {
                services: services.parse().ok()?,
                endpoints: endpoints.parse().ok()?,
                updates: updates.parse().ok()?,
            })
        };
        parse().with_context(|| format!("{text:?} is not SERVICESxENDPOINTS:UPDATES, such as 10000x10:20"))
    }
}

impl Scale {
    /// Measures, writes the results and prints them.
    pub(crate) fn run(self) -> Result<()> {
        let directory = self.out.join("run");
        fs::create_dir_all(&directory)?;
        let mut rows = Vec::new();
        for size in &self.meshes {
            eprintln!(
                "{} services × {} endpoints, {} updates",
                size.services, size.endpoints, size.updates
            );
            let params = Params::new()
                .with("services", u64::from(size.services))
                .with("endpoints", u64::from(size.endpoints))
                .with("updates", u64::from(size.updates));
            rows.extend(self.measure(*size, &directory)?.into_iter().map(|figure| Row {
                system: report::OURS.to_owned(),
                scenario: "scale".to_owned(),
                params: params.clone(),
                round: 1,
                metric: figure.metric,
                unit: figure.unit,
                value: figure.value,
            }));
        }
        print!("{}", report::single("scale", &rows));
        results::replace(&self.out.join("results.json"), rows)?;
        Ok(())
    }

    fn measure(&self, size: Size, directory: &Path) -> Result<Vec<Figure>> {
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = free_port()?;
        let mesh = Mesh {
            services: size.services,
            endpoints: size.endpoints,
            listen: here(free_port()?),
            admin: here(free_port()?),
            live: (LIVE, port),
        };
        let _servers: Vec<Process> = LIVE
            .iter()
            .map(|address| serve(SocketAddr::from((*address, port)), directory))
            .collect::<Result<_>>()?;
        let path = directory.join(format!("mesh-{}x{}.yaml", size.services, size.endpoints));
        let text = mesh.yaml(0);
        let megabytes = text.len() as f64 / 1e6;
        fs::write(&path, text)?;
        let (mut proxy, ready) = self.start(&mesh, &path, directory)?;
        let mut figures = vec![
            Figure::new("yaml_mb", "MB", megabytes),
            Figure::new("ready_ms", "ms", ready.as_secs_f64() * 1e3),
            Figure::new("rss_kb", "kB", proxy.settled_rss_kb()? as f64),
            Figure::new("peak_rss_kb", "kB", proxy.memory_kb("VmHWM")? as f64),
        ];
        figures.extend(self.update_under_load(size, &mesh, &path, &mut proxy, directory)?);
        figures.push(Figure::new(
            "rss_kb_after_updates",
            "kB",
            proxy.settled_rss_kb()? as f64,
        ));
        figures.push(Figure::new(
            "peak_rss_kb_with_updates",
            "kB",
            proxy.memory_kb("VmHWM")? as f64,
        ));
        Ok(figures)
    }

    /// Starts Underpass; returns it with the time from its start to `/ready`.
    fn start(&self, mesh: &Mesh, path: &Path, directory: &Path) -> Result<(Process, Duration)> {
        let program = self.programs.find(Kind::Underpass)?;
        let mut command = Place::default().command(&program)?;
        command.arg("run").arg("--config").arg(path);
        let begin = Instant::now();
        let mut proxy = Process::start(command, &directory.join("scale.log"))?;
        proxy.wait_until("/ready", DEADLINE, |_| Ok(admin::is_ready(mesh.admin)))?;
        Ok((proxy, begin.elapsed()))
    }

    fn update_under_load(
        &self,
        size: Size,
        mesh: &Mesh,
        path: &Path,
        proxy: &mut Process,
        directory: &Path,
    ) -> Result<Vec<Figure>> {
        let mut command = Place::default().own("steady")?;
        command.args(["--target", &mesh.listen.to_string(), "--rate", &self.rate.to_string()]);
        let mut load = Process::start(command, &directory.join("steady.log"))?;
        load.line()?;
        let mut durations = Vec::new();
        for update in 1..=size.updates {
            durations.push(apply(mesh, update, path, proxy)?.as_secs_f64() * 1e3);
        }
        let report = load.finish()?;
        let outcome: steady::Outcome = serde_json::from_str(&report).context("the steady load's report")?;
        if let Some(error) = &outcome.first_error {
            eprintln!(
                "{} of {} connections failed, first: {error}",
                outcome.failed, outcome.completed
            );
        }
        let mut figures = vec![
            Figure::new("completed_connections", "1", outcome.completed as f64),
            Figure::new("failed_connections", "1", outcome.failed as f64),
        ];
        if let Some(updates) = Summary::of(durations) {
            figures.push(Figure::new("update_ms", "ms", updates.median));
            figures.push(Figure::new("update_most_ms", "ms", updates.most));
        }
        let during = |figure: Figure| Figure {
            metric: format!("connection_{}", figure.metric),
            ..figure
        };
        figures.extend(outcome.latency.into_iter().map(during));
        Ok(figures)
    }
}

/// Rewrites the file as an editor does (a new file under the old name); returns the time until it is in force.
fn apply(mesh: &Mesh, update: u32, path: &Path, proxy: &mut Process) -> Result<Duration> {
    let (applied, rejected) = admin::updates(mesh.admin)?;
    let new = path.with_extension("yaml.new");
    fs::write(&new, mesh.yaml(update))?;
    let begin = Instant::now();
    fs::rename(&new, path)?;
    proxy.wait_until(&format!("apply update {update}"), DEADLINE, |_| {
        let (now_applied, now_rejected) = admin::updates(mesh.admin)?;
        if now_rejected > rejected {
            bail!(
                "update {update} ({}) was rejected: see /metrics and the log",
                path.display()
            );
        }
        Ok(now_applied > applied)
    })?;
    Ok(begin.elapsed())
}

fn serve(address: SocketAddr, directory: &Path) -> Result<Process> {
    let mut command = Place::default().own("serve")?;
    command.args(["--address", &address.to_string()]).args([
        "--service",
        &serde_json::to_string(&Service::AnswerOnce { size: GREETING_SIZE })?,
    ]);
    let mut server = Process::start(command, &directory.join(format!("live-{}.log", address.ip())))?;
    server.line()?;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_size_is_read_as_written() {
        let size: Size = "10000x10:20".parse().unwrap();
        assert_eq!(
            size,
            Size {
                services: 10_000,
                endpoints: 10,
                updates: 20
            }
        );
        assert!("10000x10".parse::<Size>().is_err());
    }
}
