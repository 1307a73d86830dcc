//! gRPC's own test cases, by grpc-go's client and server with the proxy between them.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::grpc::{Interop, interop};
use underpass_tests::{Host, Need, Process, Proxy, World, available, wait};

/// All that need no credentials of a cloud (grpc-go's `interop/interop_test.sh` has the same list).
const CASES: [&str; 18] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
];

/// What is given up at once, which may be before the client has sent anything.
const MAY_NOT_BE_SENT: [&str; 2] = ["timeout_on_sleeping_server", "cancel_after_begin"];

/// What the cases about a server's load ask the client to have.
const BALANCER: &str = r#"{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}"#;
/// A case that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(90);

/// What the cluster may say that its endpoints speak.
const PROTOCOLS: [&str; 2] = ["http2", "as-downstream"];

#[test]
fn every_case_of_grpcs_passes() {
    if !available(&[Need::Root, Need::GrpcInterop]) {
        return;
    }
    let programs = interop().expect("they are there");
    // The server takes its port on every address of its host.
    let world = World::cluster(1);
    let [client, us, server] = [(); 3].map(|()| world.host());
    let _server = serve(&world, &programs, &server);
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, yaml(&us, server.at(9001))).expect("write the configuration");
    let proxy = Proxy::start_with_file(&world, &us, file);
    for (port, protocol) in (8080..).zip(PROTOCOLS) {
        let counted = || {
            let labels = [("listener", protocol)];
            proxy.metrics().sum("underpass_http_requests_total", &labels)
        };
        for case in CASES {
            let before = counted();
            ask(&world, &programs, &client, us.at(port), case);
            if !MAY_NOT_BE_SENT.contains(&case) {
                let what = format!("{case} is counted, to a cluster of {protocol}");
                wait::eventually(wait::SOON, &what, || counted() > before);
            }
        }
    }
}

fn serve(world: &World, programs: &Interop, host: &Host) -> Process {
    let mut command = Process::command(&programs.server.display().to_string());
    command.arg("--port=9001");
    let mut process = Process::start(world, host, "interop-server", command);
    process.wait_for_port(host, host.at(9001));
    process
}

/// The client fails if the case does.
fn ask(world: &World, programs: &Interop, client: &Host, at: SocketAddr, case: &str) {
    let mut command = Process::command(&programs.client.display().to_string());
    command
        .env("GRPC_GO_LOG_SEVERITY_LEVEL", "info")
        .arg(format!("--server_host={}", at.ip()))
        .arg(format!("--server_port={}", at.port()))
        .arg(format!("--test_case={case}"))
        .arg(format!("--service_config_json={BALANCER}"))
        // These are to show what comes of many calls, not how fast a busy machine is.
        .args([
            "--soak_overall_timeout_seconds=60",
            "--soak_per_iteration_max_acceptable_latency_ms=20000",
        ]);
    let said = Process::run(world, client, case, command, DEADLINE);
    assert!(said.contains(" done"), "{case}: {said}");
}

fn yaml(us: &Host, server: SocketAddr) -> String {
    let mut yaml = format!(
        "node:\n  name: a\n  admin: '{}'\n  access_log: {{format: off}}\n  listeners:\n",
        us.loopback().at(15000)
    );
    for (port, protocol) in (8080..).zip(PROTOCOLS) {
        let at = us.at(port);
        yaml += &format!("  - {{name: {protocol}, address: '{at}', protocol: http, routes: {protocol}}}\n");
    }
    yaml += "http:\n  clusters:\n";
    for protocol in PROTOCOLS {
        yaml += &format!("  - {{name: {protocol}, protocol: {protocol}, endpoints: ['{server}']}}\n");
    }
    yaml += "  routes:\n";
    for protocol in PROTOCOLS {
        let route = format!("{{forward: {{cluster: {protocol}, timeout: 0s}}}}");
        yaml +=
            &format!("  - {{name: {protocol}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{route}]}}]}}\n");
    }
    yaml
}
