//! A program that gets a small part of a processor.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::Process;

/// One period of the scheduler's bandwidth control, its default.
const PERIOD_US: u64 = 100_000;

/// A process' cgroup with a quota; it is removed with the test.
pub struct Throttle(PathBuf);

impl Throttle {
    /// Gives `process` so many hundredths of one processor from now on. None if the machine has no controller for it that may be used.
    pub fn new(process: &Process, percent: u64) -> Option<Self> {
        let folder = cpu_controller()?.join(format!("underpass-test-throttle-{}", process.pid()));
        fs::create_dir(&folder).ok()?;
        let throttle = Self(folder);
        let quota = PERIOD_US * percent / 100;
        let write = |file: &str, text: String| fs::write(throttle.0.join(file), text);
        let limited = write("cpu.cfs_period_us", PERIOD_US.to_string())
            .and_then(|()| write("cpu.cfs_quota_us", quota.to_string()))
            .or_else(|_| write("cpu.max", format!("{quota} {PERIOD_US}")));
        limited
            .and_then(|()| write("cgroup.procs", process.pid().to_string()))
            .ok()?;
        Some(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Whoever is in it goes where it came from, and is not slowed down in ending.
        if let (Some(parent), Ok(pids)) = (self.0.parent(), fs::read_to_string(self.0.join("cgroup.procs"))) {
            for pid in pids.lines() {
                let _ = fs::write(parent.join("cgroup.procs"), pid);
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where cgroups with the controller `cpu` are made: its own hierarchy (version 1), or the common one if it is enabled there.
fn cpu_controller() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find_map(|fields| match fields[..] {
        [_, path, "cgroup", options, ..] if options.split(',').any(|option| option == "cpu") => Some(path.into()),
        [_, path, "cgroup2", ..] if is_enabled_below(Path::new(path)) => Some(path.into()),
        _ => None,
    })
}

fn is_enabled_below(cgroup: &Path) -> bool {
    let enabled = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
    enabled.split_whitespace().any(|controller| controller == "cpu")
}
