//! The `underpass` command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Gives memory back after a burst of connections, which the system's allocator does not reliably do.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A waypoint for the pods of one node.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT, then drain.
    Run {
        /// YAML configuration; it is watched, and valid changes are applied.
        #[arg(long)]
        config: PathBuf,
        /// Admin address, instead of the configured one.
        #[arg(long)]
        admin: Option<SocketAddr>,
    },
    /// Check a configuration and say what is wrong with it.
    Validate {
        /// YAML configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { config, admin } => underpass::run::run(&config, admin),
        Command::Validate { config } => underpass::run::load(&config).map(|(_, loaded)| {
            let (workloads, services) = (loaded.mesh.workloads().count(), loaded.mesh.services().count());
            println!(
                "{} is valid: {workloads} workloads, {services} services",
                config.display()
            );
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("underpass: {error}");
            ExitCode::FAILURE
        }
    }
}
