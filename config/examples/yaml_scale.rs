//! Loads a mesh of 10 000 services with 10 endpoints each, 100 000 different workloads, from a YAML file, and then the
//! same file with one endpoint changed. Prints what that costs.
//!
//! `cargo run --release -p underpass-config --example yaml_scale [SERVICES [ENDPOINTS]]`

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use underpass_config::Config;

fn main() -> anyhow::Result<()> {
    let mut sizes = std::env::args().skip(1);
    let services = sizes.next().map_or(Ok(10_000), |size| size.parse())?;
    let endpoints = sizes.next().map_or(Ok(10), |size| size.parse())?;
    ensure!(
        (1..=60_000).contains(&services) && (1..=250).contains(&endpoints),
        "at most 60 000 services of 250 endpoints"
    );

    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), document(services, endpoints, "v1")?)?;
    let bytes = std::fs::metadata(file.path())?.len();
    // Writing the document took memory too, which is not what is measured.
    std::fs::write("/proc/self/clear_refs", "5").context("resetting the peak of memory")?;

    let (config, took) = timed(|| Config::load(file.path()))?;
    let config = config?;
    println!("bytes\t{bytes}");
    println!("load\t{took}");
    println!("peak\t{} MB", peak_memory()? / 1000);
    ensure!(
        config.mesh.workloads().count() == services * endpoints,
        "all workloads are there"
    );

    let changed = document(services, endpoints, "v2")?;
    let (updated, took) = timed(|| config.updated(&changed))?;
    let (_, touched) = updated?;
    println!("update\t{took}");
    ensure!(touched.workloads.len() == 1, "one workload was touched");
    Ok(())
}

/// What a step took: by the clock, and of the processor, which differ on a machine that has other things to do.
struct Took {
    clock: Duration,
    processor: Duration,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.3} s ({:.3} s of the processor)",
            self.clock.as_secs_f64(),
            self.processor.as_secs_f64()
        )
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> anyhow::Result<(T, Took)> {
    let (start, before) = (Instant::now(), processor_time()?);
    let result = work();
    Ok((
        result,
        Took {
            clock: start.elapsed(),
            processor: processor_time()? - before,
        },
    ))
}

/// Time this thread has run (kernel documentation, scheduler/sched-stats: `/proc/<pid>/schedstat`, first number, in ns).
fn processor_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = stat.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

/// The document; `name` is the canonical name of the first workload.
fn document(services: usize, endpoints: usize, name: &str) -> Result<String, fmt::Error> {
    let mut yaml = "node: {name: node-0, network: main}\nworkloads:\n".to_owned();
    for service in 0..services {
        for endpoint in 0..endpoints {
            let (node, zone) = ((service * endpoints + endpoint) % 500, endpoint % 3);
            write!(
                yaml,
                "- name: app-{service}-{endpoint}\n  namespace: team-{}\n  service_account: app-{service}\n  \
                 addresses: [10.{}.{}.{}]\n  node: node-{node}\n  locality: {{region: eu, zone: eu-{zone}}}\n",
                service % 100,
                service / 250,
                service % 250,
                endpoint + 1,
            )?;
            if (service, endpoint) == (0, 0) {
                writeln!(yaml, "  canonical_name: {name}")?;
            }
        }
    }
    yaml.push_str("services:\n");
    for service in 0..services {
        let namespace = service % 100;
        write!(
            yaml,
            "- name: app-{service}\n  namespace: team-{namespace}\n  vips: [172.16.{}.{}]\n  \
             ports: [{{port: 80, target_port: 8080, app_protocol: http}}]\n  \
             load_balancing: {{mode: failover, scopes: [region, zone]}}\n  endpoints:\n",
            service / 250,
            service % 250,
        )?;
        for endpoint in 0..endpoints {
            writeln!(yaml, "  - team-{namespace}/app-{service}-{endpoint}")?;
        }
    }
    Ok(yaml)
}

/// The largest resident memory since the start or the last reset, in kB (proc(5): `VmHWM`).
fn peak_memory() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
