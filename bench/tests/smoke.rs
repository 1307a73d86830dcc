//! The bench itself, at its smallest: real processes and sockets on loopback, no peers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_underpass-bench");
const DEADLINE: Duration = Duration::from_secs(30);

fn bench(out: &Path) -> Command {
    let mut command = Command::new(BENCH);
    command
        .env_remove("SYSTEMS")
        .env_remove("SCENARIO")
        .env_remove("ROUNDS");
    command
        .args([
            "run",
            "--loopback",
            "--systems",
            "direct,direct-b",
            "--warmup",
            "0.01",
            "--out",
        ])
        .arg(out);
    command
}

#[test]
fn a_run_writes_a_row_per_system_case_round_and_metric_and_a_report() {
    let out = tempfile::tempdir().unwrap();
    // Empty variables, as `make` passes those that were not given.
    let output = bench(out.path())
        .args(["--seconds", "0.05"])
        .envs([("SCENARIO", ""), ("ROUNDS", "2")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.path().join("results.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let count = |scenario: &str, metric: &str| {
        rows.iter()
            .filter(|row| row["scenario"] == scenario && row["metric"] == metric)
            .inspect(|row| assert!(row["value"].as_f64().unwrap() > 0.0, "{row}"))
            .count()
    };
    // Two systems, two rounds; three sizes in two placements, two directions, two concurrencies.
    assert_eq!(count("l4-rtt", "p50_us"), 2 * 2 * 6);
    assert_eq!(count("l4-stream", "gbytes_per_s"), 2 * 2 * 2);
    assert_eq!(count("l4-connect", "connections_per_s"), 2 * 2 * 2);
    let report = fs::read_to_string(out.path().join("report.md")).unwrap();
    assert!(report.contains("| one-core, size 16384 "), "{report}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), report);
}

#[test]
fn an_unknown_scenario_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let output = bench(out.path())
        .env("ROUNDS", "1")
        .args(["--scenarios", "l4-warp"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        error.contains("unknown scenario \"l4-warp\"") && error.contains("l4-stream"),
        "{error}"
    );
}

/// SIGKILL is the hardest end: no code of the bench runs. SIGINT and a panic leave no more than this does.
#[test]
fn a_killed_run_leaves_no_process_behind() {
    let out = tempfile::tempdir().unwrap();
    let mut run = bench(out.path())
        .args(["--scenarios", "l4-rtt", "--seconds", "600"])
        .env("ROUNDS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A client and a server.
    let children = wait_for("two children", || {
        let path = format!("/proc/{0}/task/{0}/children", run.id());
        let children = fs::read_to_string(path).unwrap_or_default();
        let children: Vec<String> = children.split_ascii_whitespace().map(str::to_owned).collect();
        (children.len() == 2).then_some(children)
    });
    run.kill().unwrap();
    run.wait().unwrap();
    for child in children {
        wait_for("the end of a child", || {
            // Gone, or a zombie that its new parent has yet to reap.
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        });
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::yield_now();
    }
}
