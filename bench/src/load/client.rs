//! The client process of a sample: makes the load, discards the warm-up, prints one [`Measured`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use nix::sys::resource::UsageWho;

use super::connection::Connection;
use super::{Direction, Figure, GREETING_SIZE, Measured, READ_SIZE, WRITE_SIZE, Work, connect, cpu_seconds};

/// Connections that a sample of one connection at a time makes, one after the other. Which of a proxy's threads gets a
/// connection, and on which core that thread is, is luck that lasts as long as the connection.
const IN_A_ROW: u32 = 4;

/// Arguments of the hidden `load` subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Load {
    /// Where to connect to.
    #[arg(long)]
    target: SocketAddr,
    /// What to do, as JSON.
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Work>(text))]
    work: Work,
    /// Seconds before measuring.
    #[arg(long)]
    warmup: f64,
    /// Seconds to measure.
    #[arg(long)]
    seconds: f64,
}

impl Load {
    /// Does the work and prints what was measured.
    pub(crate) fn run(self) -> Result<()> {
        let window = Window {
            warmup: Duration::from_secs_f64(self.warmup),
            measured: Duration::from_secs_f64(self.seconds),
        };
        let mut measured = match self.work {
            Work::RoundTrip { size } => round_trips(self.target, size, window),
            Work::Stream {
                direction: Direction::ClientToServer,
            } => streams(self.target, window, stream_out),
            Work::Stream {
                direction: Direction::ServerToClient,
            } => streams(self.target, window, stream_in),
            Work::Connect { concurrency } => connections(self.target, concurrency, window),
            Work::Program { .. } | Work::Requests { .. } => {
                bail!("{} is the work of programs of their own", self.work.scenario())
            }
        }?;
        measured.client_cpu_s = cpu_seconds(UsageWho::RUSAGE_SELF)?;
        println!("{}", serde_json::to_string(&measured)?);
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Window {
    warmup: Duration,
    measured: Duration,
}

impl Window {
    /// The share of one of the connections that a sample makes in a row.
    fn part(self) -> Window {
        Window {
            warmup: self.warmup / IN_A_ROW,
            measured: self.measured / IN_A_ROW,
        }
    }

    /// Calls `step` until the window has passed. `step` is told whether it is measured and returns when it ended.
    /// Returns the length of the measured part.
    fn repeat(self, mut step: impl FnMut(bool) -> Result<Instant>) -> Result<Duration> {
        let warm = Instant::now() + self.warmup;
        while step(false)? < warm {}
        let start = Instant::now();
        let end = start + self.measured;
        loop {
            let now = step(true)?;
            if now >= end {
                return Ok(now - start);
            }
        }
    }
}

/// Latencies in nanoseconds up to a minute, to three significant digits.
pub(crate) fn latencies() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("histogram bounds")
}

/// p50, p90, p99 and p99.9 in microseconds.
pub(crate) fn percentiles(histogram: &Histogram<u64>) -> Vec<Figure> {
    [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999)]
        .map(|(metric, quantile)| Figure::new(metric, "us", histogram.value_at_quantile(quantile) as f64 / 1e3))
        .to_vec()
}

fn round_trips(target: SocketAddr, size: usize, window: Window) -> Result<Measured> {
    let message: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let mut answer = vec![0; size];
    let mut histogram = latencies()?;
    let (mut operations, mut elapsed) = (0, Duration::ZERO);
    for _ in 0..IN_A_ROW {
        let mut stream = Connection::new(connect(target)?)?;
        elapsed += window.part().repeat(|measured| {
            let begin = Instant::now();
            stream.write_all(&message).context("sending a message")?;
            stream.read_exact(&mut answer).context("reading the echo")?;
            let end = Instant::now();
            operations += 1;
            if measured {
                histogram.record((end - begin).as_nanos() as u64)?;
            }
            Ok(end)
        })?;
        ensure!(answer == message, "the echo of {size} bytes differs from what was sent");
    }
    let mut figures = percentiles(&histogram);
    let rate = histogram.len() as f64 / elapsed.as_secs_f64();
    figures.push(Figure::new("round_trips_per_s", "1/s", rate));
    Ok(Measured {
        figures,
        operations,
        bytes: operations * 2 * size as u64,
        ..Measured::default()
    })
}

/// What one streaming connection carried.
struct Streamed {
    /// Bytes, the warm-up included.
    total: u64,
    /// Bytes of the measured part.
    counted: u64,
    /// Length of the measured part.
    elapsed: Duration,
}

fn streams(target: SocketAddr, window: Window, stream: fn(Connection, Window) -> Result<Streamed>) -> Result<Measured> {
    let (mut total, mut counted, mut elapsed) = (0, 0, Duration::ZERO);
    for _ in 0..IN_A_ROW {
        let one = stream(Connection::new(connect(target)?)?, window.part())?;
        total += one.total;
        counted += one.counted;
        elapsed += one.elapsed;
    }
    let rate = counted as f64 / elapsed.as_secs_f64() / 1e9;
    Ok(Measured {
        figures: vec![Figure::new("gbytes_per_s", "GB/s", rate)],
        bytes: total,
        ..Measured::default()
    })
}

fn stream_out(mut stream: Connection, window: Window) -> Result<Streamed> {
    let chunk = vec![0x5a; WRITE_SIZE];
    let (mut total, mut counted) = (0, 0);
    let elapsed = window.repeat(|measured| {
        stream.write_all(&chunk).context("streaming out")?;
        total += WRITE_SIZE as u64;
        counted += if measured { WRITE_SIZE as u64 } else { 0 };
        Ok(Instant::now())
    })?;
    stream.finish()?;
    let mut received = [0; 8];
    stream
        .read_exact(&mut received)
        .context("reading the receiver's count")?;
    let received = u64::from_le_bytes(received);
    ensure!(
        received == total,
        "{total} bytes were sent, but the receiver counted {received}"
    );
    Ok(Streamed {
        total,
        counted,
        elapsed,
    })
}

fn stream_in(mut stream: Connection, window: Window) -> Result<Streamed> {
    let mut chunk = vec![0; READ_SIZE];
    let (mut total, mut counted) = (0, 0);
    let elapsed = window.repeat(|measured| {
        let read = stream.read(&mut chunk).context("streaming in")? as u64;
        ensure!(read > 0, "the stream ended before the client had enough");
        total += read;
        counted += if measured { read } else { 0 };
        Ok(Instant::now())
    })?;
    Ok(Streamed {
        total,
        counted,
        elapsed,
    })
}

/// Connect, one small round trip, end of stream from the server, close. The server closes first on purpose: then nobody
/// on the client's side is left with TIME_WAIT, and ephemeral ports never run short, with or without a proxy.
fn connections(target: SocketAddr, concurrency: usize, window: Window) -> Result<Measured> {
    let results: Vec<Result<(Histogram<u64>, u64, Duration)>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..concurrency)
            .map(|_| scope.spawn(|| connect_in_a_row(target, window)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut histogram = latencies()?;
    let (mut operations, mut rate) = (0, 0.0);
    for result in results {
        let (latency, count, elapsed) = result?;
        rate += latency.len() as f64 / elapsed.as_secs_f64();
        histogram.add(latency)?;
        operations += count;
    }
    let mut figures = vec![Figure::new("connections_per_s", "1/s", rate)];
    figures.extend(percentiles(&histogram));
    Ok(Measured {
        figures,
        operations,
        bytes: operations * 2 * GREETING_SIZE as u64,
        ..Measured::default()
    })
}

fn connect_in_a_row(target: SocketAddr, window: Window) -> Result<(Histogram<u64>, u64, Duration)> {
    let mut histogram = latencies()?;
    let mut operations = 0;
    let elapsed = window.repeat(|measured| {
        let begin = Instant::now();
        drop(greet(target)?);
        let end = Instant::now();
        operations += 1;
        if measured {
            histogram.record((end - begin).as_nanos() as u64)?;
        }
        Ok(end)
    })?;
    Ok((histogram, operations, elapsed))
}

/// One connection of the connecting scenario, up to the server's end of stream.
pub(crate) fn greet(target: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(target)?;
    stream
        .write_all(&[0x47; GREETING_SIZE])
        .context("sending the greeting")?;
    let mut answer = [0; GREETING_SIZE];
    stream.read_exact(&mut answer).context("reading the answer")?;
    ensure!(
        stream.read(&mut [0; 1]).context("waiting for the end")? == 0,
        "more came than the answer"
    );
    Ok(stream)
}
