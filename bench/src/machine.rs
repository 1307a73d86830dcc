//! What a report has to say about the machine it was made on, and how much of it others used meanwhile.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::place;
use crate::system::{Kind, Programs, System};

/// Machine, kernel and versions of the systems.
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    versions: Vec<String>,
}

/// Looks at the machine and at the systems to be compared. A system that isn't installed is an error, with its remedy.
pub(crate) fn describe(systems: &[System], programs: &Programs) -> Result<Machine> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown");
    let mut versions = Vec::new();
    for system in systems {
        if !matches!(system.kind, Kind::Direct | Kind::BareRelay) && !system.label.ends_with(crate::system::AGAIN) {
            versions.push(format!("{system}: {}", programs.version(system.kind)?));
        }
    }
    Ok(Machine {
        cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
        cores: place::cores()?.len(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        versions,
    })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores of {}, Linux {}; {}",
            self.cores,
            self.cpu,
            self.kernel,
            self.versions.join("; ")
        )
    }
}

/// CPU time that the whole machine has spent on anything but idling, all cores, since it was started. Includes what
/// the hypervisor gave to other guests.
pub(crate) fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&stat).context("no cpu line in /proc/stat")?;
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

/// Everything but idle and iowait of the first line, `cpu user nice system idle iowait irq softirq steal …`; guest time,
/// which follows, is part of user time (proc(5)).
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat
        .strip_prefix("cpu ")?
        .lines()
        .next()?
        .split_ascii_whitespace()
        .take(8);
    let ticks: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] = ticks[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq + steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        assert_eq!(
            busy_ticks("cpu  1 2 4 1000 2000 8 16 32 64 0\ncpu0 1 1 1 1 1 1 1 1\n"),
            Some(63)
        );
        assert_eq!(busy_ticks("intr 5"), None);
    }
}
