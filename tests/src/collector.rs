//! A running collector of OpenTelemetry, which prints what it is told.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::requirement::built_by;
use crate::{Host, Process, World, wait};

/// The one that `scripts/collector-setup.sh` builds.
pub(crate) fn program() -> Option<PathBuf> {
    built_by("collector-setup.sh")
}

/// Starts it on `host`, where it is told of spans by gRPC and by HTTP, and waits until it listens. Panics when it was not built.
pub fn start(world: &World, host: &Host, grpc: SocketAddr, http: SocketAddr) -> Process {
    let file = world.directory().join(format!("collector-{}.yaml", host.ip()));
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{grpc}'}}, http: {{endpoint: '{http}'}}}}}}}}
exporters: {{debug: {{verbosity: detailed, use_internal_logger: false, output_paths: [stdout]}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}
"
    );
    fs::write(&file, config).expect("write the collector's configuration");
    let program = program().expect("scripts/collector-setup.sh has built it");
    let mut command = Process::command(&program.display().to_string());
    command.arg(format!("--config={}", file.display()));
    let mut process = Process::start(world, host, "collector", command);
    for at in [grpc, http] {
        wait::eventually(wait::SOON, "the collector listens", || {
            assert!(process.exit_status().is_none(), "{}", process.output());
            host.connect_unbound(at).is_ok()
        });
    }
    process
}
