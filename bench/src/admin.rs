//! The two questions that the bench asks Underpass's admin interface.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether `GET /ready` answers 200. Nobody listening is an answer too: no.
pub(crate) fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

/// Configuration updates so far: (applied, rejected).
pub(crate) fn updates(admin: SocketAddr) -> Result<(u64, u64)> {
    let metrics = get(admin, "/metrics")?;
    if !metrics.starts_with("HTTP/1.1 200 ") {
        bail!("/metrics answered {:?}", metrics.lines().next().unwrap_or_default());
    }
    Ok((count(&metrics, "applied"), count(&metrics, "rejected")))
}

fn count(metrics: &str, result: &str) -> u64 {
    let label = format!("result=\"{result}\"");
    metrics
        .lines()
        .filter(|line| line.starts_with("underpass_config_updates_total{") && line.contains(&label))
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
        assert_eq!((count(metrics, "applied"), count(metrics, "rejected")), (12, 1));
        assert_eq!(count("", "applied"), 0);
    }
}
