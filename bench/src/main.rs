//! `underpass-bench`: Underpass beside no proxy, HAProxy and Envoy, on one machine, in one run.
//!
//! `run` measures latency, throughput, connection rate and CPU in interleaved rounds; `memory`, `soak`, `scale` and `mesh-scale` measure what
//! idle connections, a large configuration and a large mesh cost; `check` holds the results against the project's goals. All write
//! rows of one shape into `results.json`. README.md beside this crate says what is compared, how, and why it is fair.
//!
//! The binary starts itself, under hidden subcommands, as the load's client and server and as the launcher that puts
//! every process in its place (`place`).

#![forbid(unsafe_code)]

mod admin;
mod ballast;
mod bare_relay;
mod captured;
mod check;
mod comparison;
mod http;
mod load;
mod machine;
mod memory;
mod mesh;
mod mesh_scale;
mod place;
mod process;
mod report;
mod results;
mod run;
mod scale;
mod scenarios;
mod soak;
mod system;
mod topology;
mod tunnelled;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    version,
    about = "Latency, throughput, CPU and memory of Underpass and its peers, side by side"
)]
struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures latency, throughput and connection rate in interleaved rounds.
    Run(run::Run),
    /// Measures what a fresh proxy and its idle connections cost in memory.
    Memory(memory::Memory),
    /// Loads a proxy of HTTP for long and says whether it grew.
    Soak(soak::Soak),
    /// Measures start-up, memory and updates with a large configuration.
    Scale(scale::Scale),
    /// Measures what a large mesh costs a node that takes it from a control plane.
    MeshScale(mesh_scale::MeshScale),
    /// States each goal as pass or fail with the figure.
    Check(check::Check),
    /// Starts a program in its place (used by the bench itself).
    #[command(hide = true)]
    Launch(place::Launch),
    /// Holds a network namespace (used by the bench itself).
    #[command(hide = true)]
    Namespace(place::HoldNamespace),
    /// The bare relay (used by the bench itself).
    #[command(hide = true)]
    BareRelay(bare_relay::BareRelay),
    /// A sample's server (used by the bench itself).
    #[command(hide = true)]
    Serve(load::serve::Serve),
    /// A sample's client (used by the bench itself).
    #[command(hide = true)]
    Load(load::client::Load),
    /// Holds idle connections (used by the bench itself).
    #[command(hide = true)]
    Hold(load::hold::Hold),
    /// Says how many bytes went which way (used by the bench itself).
    #[command(hide = true)]
    Tiers(admin::Tiers),
    /// Makes connections at a steady rate (used by the bench itself).
    #[command(hide = true)]
    Steady(load::steady::Steady),
}

fn main() -> ExitCode {
    match run(Bench::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("underpass-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(run) => run.run(),
        Command::Memory(memory) => memory.run(),
        Command::Soak(soak) => soak.run(),
        Command::Scale(scale) => scale.run(),
        Command::MeshScale(scale) => scale.run(),
        Command::Check(check) => check.run(),
        Command::Launch(launch) => launch.exec(),
        Command::Namespace(namespace) => namespace.run(),
        Command::BareRelay(relay) => relay.run(),
        Command::Serve(serve) => serve.run(),
        Command::Load(load) => load.run(),
        Command::Hold(hold) => hold.run(),
        Command::Tiers(tiers) => tiers.run(),
        Command::Steady(steady) => steady.run(),
    }
}
