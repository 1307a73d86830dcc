//! The questions that the bench asks Underpass's admin interface.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether `GET /ready` answers 200. Nobody listening is an answer too: no.
pub(crate) fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

/// Configuration updates so far: (applied, rejected).
pub(crate) fn updates(admin: SocketAddr) -> Result<(u64, u64)> {
    let metrics = metrics(admin)?;
    let updates = |result: &str| total(&metrics, "underpass_config_updates", &format!("result=\"{result}\""));
    Ok((updates("applied"), updates("rejected")))
}

/// What the mesh in force has: (workloads, services).
pub(crate) fn mesh(admin: SocketAddr) -> Result<(u64, u64)> {
    let answer = get(admin, "/status")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("/status without a body")?;
    let status: serde_json::Value = serde_json::from_str(body).context("/status")?;
    let count = |what: &str| {
        status["mesh"][what]
            .as_u64()
            .with_context(|| format!("no {what} in /status"))
    };
    Ok((count("workloads")?, count("services")?))
}

/// Arguments of the hidden `tiers` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Tiers {
    /// The proxy's admin server, as it is reached from here.
    #[arg(long)]
    admin: SocketAddr,
}

/// Bytes that a proxy has moved so far, by tier.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct TierBytes {
    pub(crate) relay: u64,
    pub(crate) kernel: u64,
}

impl Tiers {
    /// Prints the [`TierBytes`], as JSON.
    pub(crate) fn run(self) -> Result<()> {
        let metrics = metrics(self.admin)?;
        let bytes = |tier: &str| total(&metrics, "underpass_tier_bytes", &format!("tier=\"{tier}\""));
        let bytes = TierBytes {
            relay: bytes("relay"),
            kernel: bytes("kernel"),
        };
        println!("{}", serde_json::to_string(&bytes)?);
        Ok(())
    }
}

fn metrics(admin: SocketAddr) -> Result<String> {
    let metrics = get(admin, "/metrics")?;
    if !metrics.starts_with("HTTP/1.1 200 ") {
        bail!("/metrics answered {:?}", metrics.lines().next().unwrap_or_default());
    }
    Ok(metrics)
}

/// The sum of a counter's series that have this label.
fn total(metrics: &str, counter: &str, label: &str) -> u64 {
    let series = format!("{counter}_total{{");
    metrics
        .lines()
        .filter(|line| line.starts_with(&series) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("GET {path} from {admin}"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_counted_by_result() {
        let metrics = "# TYPE underpass_config_updates counter\n\
            underpass_config_updates_total{result=\"applied\"} 12\n\
            underpass_config_updates_total{result=\"rejected\"} 1\n";
        let updates = |text, label| total(text, "underpass_config_updates", label);
        assert_eq!(
            (updates(metrics, "\"applied\""), updates(metrics, "\"rejected\"")),
            (12, 1)
        );
        assert_eq!(updates("", "\"applied\""), 0);
    }
}
