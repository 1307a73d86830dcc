//! A client process that opens new connections at a constant rate until told to stop, and counts those that fail.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Figure;
use super::client::{greet, latencies, percentiles};

/// Connections that may be under way at a time.
const WORKERS: u32 = 4;

/// Arguments of the hidden `steady` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Steady {
    /// Where to connect to.
    #[arg(long)]
    target: SocketAddr,
    /// Connections per second.
    #[arg(long)]
    rate: u32,
}

/// What it prints at the end, as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Connections that did all they should.
    pub(crate) completed: u64,
    /// Connections that did not.
    pub(crate) failed: u64,
    /// What was wrong with the first of them.
    pub(crate) first_error: Option<String>,
    /// Latency of whole connections.
    pub(crate) latency: Vec<Figure>,
}

impl Steady {
    /// Makes connections until standard input ends, then prints the [`Outcome`].
    pub(crate) fn run(self) -> Result<()> {
        let stop = AtomicBool::new(false);
        let interval = Duration::from_secs(1) * WORKERS / self.rate.max(1);
        let results: Vec<Result<(Outcome, Histogram<u64>)>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|_| scope.spawn(|| pace(self.target, interval, &stop)))
                .collect();
            println!("running");
            // An unreadable standard input means that the bench is gone: stop as well.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            stop.store(true, Ordering::Relaxed);
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let mut total = Outcome::default();
        let mut histogram = latencies()?;
        for result in results {
            let (outcome, latency) = result?;
            total.completed += outcome.completed;
            total.failed += outcome.failed;
            total.first_error = total.first_error.or(outcome.first_error);
            histogram.add(latency)?;
        }
        total.latency = percentiles(&histogram);
        total
            .latency
            .push(Figure::new("max_us", "us", histogram.max() as f64 / 1e3));
        println!("{}", serde_json::to_string(&total)?);
        Ok(())
    }
}

fn pace(target: SocketAddr, interval: Duration, stop: &AtomicBool) -> Result<(Outcome, Histogram<u64>)> {
    let mut outcome = Outcome::default();
    let mut histogram = latencies()?;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match greet(target) {
            Ok(_) => {
                outcome.completed += 1;
                histogram.record(begin.elapsed().as_nanos() as u64)?;
            }
            Err(error) => {
                outcome.failed += 1;
                outcome.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        // Behind schedule, the rate is kept up from here on rather than made up for in a burst.
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok((outcome, histogram))
}
