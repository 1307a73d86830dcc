//! Loads that are programs of others, with the servers they are made for: redis-benchmark and pgbench.
//!
//! What they report is what their users look at. A server is started anew for each sample, in the place of the sample's server.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::UsageWho;
use nix::unistd::User;
use serde::{Deserialize, Serialize};

use super::{Figure, Measured, cpu_seconds};
use crate::place::Place;
use crate::process::Process;

/// Connections of each; redis-benchmark's default is 50, for more cores than there are here.
const CONNECTIONS: &str = "8";
/// Requests of redis-benchmark: about a second of one at a time for each connection.
const REQUESTS: u64 = 60_000;
/// Requests that are sent before the first answer is waited for.
const PIPELINE: u64 = 16;
/// Seconds that pgbench runs.
const SECONDS: &str = "2";
/// PostgreSQL refuses to run as root.
const DATABASE_USER: &str = "postgres";

/// A program that makes load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Program {
    /// GET, one request at a time.
    RedisBenchmark,
    /// GET, [`PIPELINE`] requests at a time.
    RedisBenchmarkPipelined,
    /// Its own read-only transaction (`-S`).
    Pgbench,
}

impl Program {
    /// All of them.
    pub(crate) const ALL: [Program; 3] = [
        Program::RedisBenchmark,
        Program::RedisBenchmarkPipelined,
        Program::Pgbench,
    ];

    /// Name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::RedisBenchmark => "redis-benchmark",
            Program::RedisBenchmarkPipelined => "redis-benchmark-pipelined",
            Program::Pgbench => "pgbench",
        }
    }

    /// Starts the server it is made for and waits until it listens.
    pub(crate) fn serve(
        self,
        place: &Place,
        address: SocketAddr,
        database: &Database,
        directory: &Path,
    ) -> Result<Process> {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let command = match self {
            Program::RedisBenchmark | Program::RedisBenchmarkPipelined => {
                let mut redis = place.command(Path::new("redis-server"))?;
                redis.args(["--bind", &host, "--port", &port, "--protected-mode", "no"]);
                redis.args(["--save", "", "--appendonly", "no"]);
                redis
            }
            Program::Pgbench => {
                let mut postgres = database.command(place, "postgres")?;
                postgres.args(["-h", &host, "-p", &port, "-c", "fsync=off", "-c", "autovacuum=off"]);
                postgres
            }
        };
        Process::start_proxy(command, &directory.join("server.log"), address.port())
    }

    /// Runs it against `target`.
    pub(crate) fn measure(self, place: &Place, target: SocketAddr, directory: &Path) -> Result<Measured> {
        let (host, port) = (target.ip().to_string(), target.port().to_string());
        let (requests, pipeline) = (REQUESTS * PIPELINE, PIPELINE.to_string());
        let command = match self {
            Program::RedisBenchmark => redis_benchmark(place, &host, &port, REQUESTS, "1")?,
            Program::RedisBenchmarkPipelined => redis_benchmark(place, &host, &port, requests, &pipeline)?,
            Program::Pgbench => {
                let mut pgbench = place.command(&server_program("pgbench")?)?;
                pgbench.args(["-h", &host, "-p", &port, "-U", DATABASE_USER, "-n", "-S"]);
                pgbench.args(["-c", CONNECTIONS, "-j", "1", "-T", SECONDS, "postgres"]);
                pgbench
            }
        };
        let before = cpu_seconds(UsageWho::RUSAGE_CHILDREN)?;
        let report = Process::start(command, &directory.join("client.log"))?.finish()?;
        let measured = match self {
            Program::RedisBenchmark => read_redis_benchmark(&report, REQUESTS),
            Program::RedisBenchmarkPipelined => read_redis_benchmark(&report, requests),
            Program::Pgbench => read_pgbench(&report),
        };
        let measured = measured.with_context(|| format!("unreadable report of {}:\n{report}", self.name()))?;
        Ok(Measured {
            client_cpu_s: cpu_seconds(UsageWho::RUSAGE_CHILDREN)? - before,
            ..measured
        })
    }
}

fn redis_benchmark(place: &Place, host: &str, port: &str, requests: u64, pipeline: &str) -> Result<Command> {
    let mut command = place.command(Path::new("redis-benchmark"))?;
    command.args(["-h", host, "-p", port, "-t", "get", "--csv", "-c", CONNECTIONS]);
    command.args(["-n", &requests.to_string(), "-P", pipeline]);
    Ok(command)
}

/// Two lines: the columns' names, and their values, quoted.
fn read_redis_benchmark(report: &str, requests: u64) -> Option<Measured> {
    let mut lines = report.lines().filter(|line| line.starts_with('"'));
    let mut fields =
        || -> Option<Vec<&str>> { Some(lines.next()?.split(',').map(|field| field.trim_matches('"')).collect()) };
    let (names, values) = (fields()?, fields()?);
    let value = |wanted: &str| -> Option<f64> {
        let column = names.iter().position(|name| *name == wanted)?;
        values.get(column)?.parse().ok()
    };
    Some(Measured {
        figures: vec![
            Figure::new("latency_us", "us", value("avg_latency_ms")? * 1e3),
            Figure::new("operations_per_s", "1/s", value("rps")?),
        ],
        operations: requests,
        ..Measured::default()
    })
}

fn read_pgbench(report: &str) -> Option<Measured> {
    let number = |before: &str| -> Option<f64> {
        let rest = report.split_once(before)?.1;
        rest.split([' ', '\n', '/']).next()?.parse().ok()
    };
    Some(Measured {
        figures: vec![
            Figure::new("latency_us", "us", number("latency average = ")? * 1e3),
            Figure::new("operations_per_s", "1/s", number("tps = ")?),
        ],
        operations: number("number of transactions actually processed: ")? as u64,
        ..Measured::default()
    })
}

/// A PostgreSQL cluster that trusts every client, filled for pgbench; removed when dropped.
pub(crate) struct Database {
    directory: PathBuf,
    uid: u32,
    gid: u32,
}

impl Database {
    /// Makes one. It takes some seconds.
    pub(crate) fn create() -> Result<Database> {
        let user = User::from_name(DATABASE_USER)?
            .with_context(|| format!("no user {DATABASE_USER}: scripts/bench-setup.sh installs PostgreSQL"))?;
        let directory = std::env::temp_dir().join(format!("underpass-bench-{}-database", std::process::id()));
        let database = Database {
            directory,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        };
        fs::create_dir(&database.directory)?;
        fs::set_permissions(&database.directory, Permissions::from_mode(0o755))?;
        chown(&database.directory, Some(database.uid), Some(database.gid))?;
        let here = Place::default();
        let mut initdb = database.command(&here, "initdb")?;
        initdb.args(["-A", "trust", "-N", "-U", DATABASE_USER]);
        run(initdb)?;
        let clients = database.directory.join("cluster/pg_hba.conf");
        fs::write(clients, "local all all trust\nhost all all all trust\n")?;
        let socket = database.directory.join(".s.PGSQL.5432");
        let mut postgres = database.command(&here, "postgres")?;
        postgres
            .arg("-k")
            .arg(&database.directory)
            .args(["-h", "", "-c", "fsync=off"]);
        let mut postgres = Process::start(postgres, &database.directory.join("bench.log"))?;
        postgres.wait_until("listen", super::SOCKET_TIMEOUT, |_| Ok(socket.exists()))?;
        let mut fill = here.command(&server_program("pgbench")?)?;
        fill.arg("-h")
            .arg(&database.directory)
            .args(["-U", DATABASE_USER, "-i", "-q", "postgres"]);
        run(fill)?;
        postgres.interrupt()?;
        Ok(database)
    }

    /// `program` of PostgreSQL's, as its user, on this cluster.
    fn command(&self, place: &Place, program: &str) -> Result<Command> {
        let mut command = place.command(Path::new("setpriv"))?;
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid));
        command.arg("--clear-groups").arg(server_program(program)?);
        command.arg("-D").arg(self.directory.join("cluster"));
        command.current_dir(&self.directory);
        Ok(command)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{} stays: {error}", self.directory.display());
        }
    }
}

fn run(mut command: Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}

/// Debian keeps them out of PATH, in a folder for each version.
fn server_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL: scripts/bench-setup.sh installs it")?;
    let candidates = versions.flatten().map(|version| version.path().join("bin").join(name));
    candidates
        .filter(|path| path.exists())
        .max()
        .with_context(|| format!("no {name} in /usr/lib/postgresql: scripts/bench-setup.sh installs it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(measured: Option<Measured>) -> Vec<(String, f64)> {
        let figures = measured.expect("readable").figures;
        figures
            .into_iter()
            .map(|figure| (figure.metric, figure.value))
            .collect()
    }

    #[test]
    fn reports_are_read_as_the_programs_write_them() {
        let redis =
            "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\"\n\"GET\",\"74626.87\",\"0.118\",\"0.040\"\n";
        let expected = vec![
            ("latency_us".to_owned(), 118.0),
            ("operations_per_s".to_owned(), 74626.87),
        ];
        assert_eq!(figures(read_redis_benchmark(redis, 9)), expected);

        let pgbench = "number of transactions actually processed: 41537/0\nlatency average = 0.193 ms\n\
                       initial connection time = 9.1 ms\ntps = 20701.4 (without initial connection time)\n";
        let expected = vec![
            ("latency_us".to_owned(), 193.0),
            ("operations_per_s".to_owned(), 20701.4),
        ];
        assert_eq!(figures(read_pgbench(pgbench)), expected);
        assert_eq!(read_pgbench(pgbench).map(|measured| measured.operations), Some(41537));
        assert!(read_pgbench("connection refused").is_none());
    }
}
