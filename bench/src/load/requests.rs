//! HTTP requests: what is asked, and the programs that ask. As fast as the answers come it is h2load (nghttp2's), which costs a client core little; at
//! a rate of its own, whether answers come or not, it is oha, which counts a request's time from when it was due.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::sys::resource::UsageWho;
use serde::{Deserialize, Serialize};

use super::{Figure, Measured, cpu_seconds};
use crate::http::{Issuer, KNOWN_TENANT, TENANT};
use crate::place::Place;
use crate::process::Process;
use crate::results::Params;

/// Of a gRPC request: a frame that is not compressed and has 64 bytes.
const GRPC_MESSAGE: [u8; 5 + 64] = {
    let mut message = [b'g'; 5 + 64];
    [message[0], message[1], message[2], message[3], message[4]] = [0, 0, 0, 0, 64];
    message
};

/// What is spoken, from the client to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// HTTP/1.1, a request at a time on each connection.
    Http1,
    /// HTTP/2 by prior knowledge.
    H2,
    /// Unary calls over it.
    Grpc,
}

/// The requests of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// What is spoken.
    pub(crate) protocol: Protocol,
    /// Connections of the client's.
    pub(crate) connections: usize,
    /// Requests at a time on each of them.
    pub(crate) streams: usize,
    /// Bytes of each answer's body.
    pub(crate) bytes: usize,
    /// Requests per second of all connections together; 0: as fast as the answers come.
    pub(crate) rate: u32,
    /// Whether they say who asks: a token, and a tenant that policies know.
    pub(crate) secured: bool,
}

impl Requests {
    /// Scenario that this is a case of.
    pub(crate) fn scenario(self) -> &'static str {
        match self.protocol {
            Protocol::Http1 if self.secured => "http1-secured",
            Protocol::Http1 => "http1",
            Protocol::H2 => "h2",
            Protocol::Grpc => "grpc",
        }
    }

    /// What sets this case apart from others of its scenario.
    pub(crate) fn params(self) -> Params {
        let params = Params::new()
            .with("connections", self.connections as u64)
            .with("streams", self.streams as u64)
            .with("bytes", self.bytes as u64);
        match self.rate {
            0 => params,
            rate => params.with("rate", u64::from(rate)),
        }
    }

    /// Asks `target` for this long and says what came of it.
    pub(crate) fn measure(
        self,
        tools: &Tools,
        place: &Place,
        target: SocketAddr,
        directory: &Path,
        (warmup, seconds): (f64, f64),
    ) -> Result<Measured> {
        let url = format!("http://{target}/{}", self.bytes);
        let before = cpu_seconds(UsageWho::RUSAGE_CHILDREN)?;
        let mut measured = match self.rate {
            0 => self.by_h2load(tools.h2load(place)?, &url, directory, (warmup, seconds))?,
            _ => self.by_oha(tools.oha(place)?, &url, directory, warmup + seconds)?,
        };
        measured.client_cpu_s = cpu_seconds(UsageWho::RUSAGE_CHILDREN)? - before;
        Ok(measured)
    }

    fn by_h2load(
        self,
        mut command: Command,
        url: &str,
        directory: &Path,
        (warmup, seconds): (f64, f64),
    ) -> Result<Measured> {
        // Not beside the configurations: a proxy that watches their folder would be woken by each line.
        let folder = directory.join("load");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let log = folder.join("requests.log");
        // It appends.
        let _ = fs::remove_file(&log);
        command
            .args(["-c", &self.connections.to_string(), "-m", &self.streams.to_string()])
            .args(["-D", &(warmup + seconds).ceil().to_string(), "-t", "1"])
            .arg(format!("--log-file={}", log.display()));
        match self.protocol {
            Protocol::Http1 => command.arg("--h1"),
            Protocol::H2 => command.args(["-p", "h2c"]),
            Protocol::Grpc => {
                let body = directory.join("message");
                fs::write(&body, GRPC_MESSAGE)?;
                command.args(["-p", "h2c", "-d"]).arg(&body).args([
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                ])
            }
        };
        if self.secured {
            let token = format!("authorization: Bearer {}", Issuer::get().token);
            command.args(["-H", &token, "-H", &format!("{TENANT}: {KNOWN_TENANT}")]);
        }
        command.arg(url);
        let said = Process::start(command, &directory.join("client.log"))?.finish()?;
        let log = BufReader::new(File::open(&log).context("h2load's log of requests")?);
        read_h2load(log, warmup).with_context(|| format!("h2load:\n{said}"))
    }

    fn by_oha(self, mut command: Command, url: &str, directory: &Path, seconds: f64) -> Result<Measured> {
        ensure!(self.protocol != Protocol::Grpc, "oha asks without gRPC's frames");
        ensure!(!self.secured, "oha is given no token");
        command
            .args(["-c", &self.connections.to_string(), "-q", &self.rate.to_string()])
            .args(["-z", &format!("{seconds}s"), "--latency-correction", "--no-tui"])
            .args(["--output-format", "json"]);
        if self.protocol == Protocol::H2 {
            command.args(["--http-version", "2", "-p", &self.streams.to_string()]);
        }
        command.arg(url);
        let report = Process::start(command, &directory.join("client.log"))?.finish()?;
        read_oha(&report).with_context(|| format!("oha:\n{report}"))
    }
}

/// Where the programs that ask are.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Tools {
    /// The h2load binary.
    #[arg(long, default_value = "/usr/bin/h2load")]
    h2load: PathBuf,
    /// The oha binary; scripts/bench-setup.sh puts it here.
    #[arg(long, default_value = ".cache/bench/oha/bin/oha")]
    oha: PathBuf,
}

impl Tools {
    fn h2load(&self, place: &Place) -> Result<Command> {
        Self::command(place, &self.h2load)
    }

    fn oha(&self, place: &Place) -> Result<Command> {
        Self::command(place, &self.oha)
    }

    fn command(place: &Place, program: &Path) -> Result<Command> {
        let program = program
            .canonicalize()
            .with_context(|| format!("{} not found: run scripts/bench-setup.sh", program.display()))?;
        place.command(&program)
    }
}

/// h2load's log has a line for each request: when it began (microseconds since 1970), its status, and how long it took (microseconds).
fn read_h2load(log: impl BufRead, warmup: f64) -> Result<Measured> {
    let mut requests = Vec::new();
    for line in log.lines() {
        let line = line?;
        let mut fields = line.split('\t').map(str::parse::<u64>);
        let mut field = || fields.next().context("a field")?.context("a number");
        let (began, status, took) = (field()?, field()?, field()?);
        ensure!(status == 200, "a request was answered by {status}");
        requests.push((began, took));
    }
    let began = |&(began, _): &(u64, u64)| began;
    let first = requests.iter().map(began).min().context("no request was answered")?;
    let from = first + (warmup * 1e6) as u64;
    let counted: Vec<_> = requests.iter().filter(|(began, _)| *began >= from).collect();
    let mut times = Histogram::<u64>::new(3)?;
    for (_, took) in &counted {
        times.record(*took)?;
    }
    let end = counted.iter().map(|(began, took)| began + took).max();
    let length = end.context("no request after the warm-up")? - from;
    Ok(Measured {
        figures: vec![
            Figure::new("requests_per_s", "1/s", counted.len() as f64 / (length as f64 / 1e6)),
            Figure::new("p50_us", "us", times.value_at_quantile(0.5) as f64),
            Figure::new("p99_us", "us", times.value_at_quantile(0.99) as f64),
        ],
        operations: requests.len() as u64,
        ..Measured::default()
    })
}

/// The parts of oha's report that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OhaReport {
    summary: OhaSummary,
    latency_percentiles: OhaPercentiles,
    status_code_distribution: std::collections::BTreeMap<String, u64>,
    error_distribution: std::collections::BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OhaSummary {
    requests_per_sec: f64,
}

#[derive(Deserialize)]
struct OhaPercentiles {
    p50: f64,
    p99: f64,
}

fn read_oha(report: &str) -> Result<Measured> {
    let report: OhaReport = serde_json::from_str(report)?;
    let answered = report.status_code_distribution.get("200").copied().unwrap_or_default();
    let all: u64 = report.status_code_distribution.values().sum();
    ensure!(
        answered == all && all > 0,
        "answers: {:?}",
        report.status_code_distribution
    );
    // What was on its way when the time was over is told as an error.
    let broken = report
        .error_distribution
        .keys()
        .find(|error| !error.contains("deadline"));
    ensure!(broken.is_none(), "errors: {:?}", report.error_distribution);
    Ok(Measured {
        figures: vec![
            Figure::new("requests_per_s", "1/s", report.summary.requests_per_sec),
            Figure::new("p50_us", "us", report.latency_percentiles.p50 * 1e6),
            Figure::new("p99_us", "us", report.latency_percentiles.p99 * 1e6),
        ],
        operations: answered,
        ..Measured::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_logs_is_counted_from_the_end_of_the_warm_up() {
        let log = "1000000\t200\t90\n1500000\t200\t100\n1750000\t200\t200\n2400000\t200\t100000\n";
        let measured = read_h2load(log.as_bytes(), 0.5).expect("readable");
        let value = |at: usize| measured.figures[at].value;
        assert_eq!((value(0), value(1)), (3.0, 200.0));
        assert_eq!(measured.operations, 4);
        assert!(read_h2load("1000000\t503\t90\n".as_bytes(), 0.0).is_err());
        assert!(read_h2load("".as_bytes(), 0.0).is_err());
    }

    #[test]
    fn what_oha_reports_is_an_error_when_a_request_failed() {
        let report = |code: u32, error: &str| {
            format!(
                "{{\"summary\": {{\"requestsPerSec\": 99.5}}, \"latencyPercentiles\": {{\"p50\": 0.001, \"p99\": 0.002}}, \
                 \"statusCodeDistribution\": {{\"{code}\": 7}}, \"errorDistribution\": {{{error}}}}}"
            )
        };
        let measured = read_oha(&report(200, "\"aborted due to deadline\": 3")).expect("readable");
        assert_eq!((measured.operations, measured.figures[2].value), (7, 2000.0));
        assert!(read_oha(&report(503, "")).is_err());
        assert!(read_oha(&report(200, "\"connection closed\": 1")).is_err());
    }
}
