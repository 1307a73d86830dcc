//! Which cores a thread of this process may be on when nothing else is asked of it.
//!
//! A thread that has once been told where it may be stays there: since Linux 6.2 the kernel remembers it beside the cpuset, and when the cpuset
//! grows (Kubernetes' static CPU manager changes it while pods come and go) such a thread does not follow. So a thread that comes back from where it
//! was sent gets *all* cores, of which the kernel takes what the cpuset has; unless somebody had bound the process to fewer (taskset(1)).

use std::fs;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity};

/// The cores for a thread without wishes of its own. The first who asks must be one: its own cores are believed to be the process'.
pub fn usual() -> &'static CpuSet {
    static USUAL: OnceLock<CpuSet> = OnceLock::new();
    USUAL.get_or_init(|| match (sched_getaffinity(None), cpuset()) {
        (Ok(own), Some(of_cpuset)) if own != of_cpuset => own,
        _ => all(),
    })
}

fn all() -> CpuSet {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| all.set(core));
    all
}

/// What the cgroup that this process is in may use; none where that is not said.
fn cpuset() -> Option<CpuSet> {
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = format!("/sys/fs/cgroup{path}/cpuset.cpus.effective");
    // Without a controller there the machine's own.
    let list = fs::read_to_string(own).or_else(|_| fs::read_to_string("/sys/devices/system/cpu/online"));
    parse(list.ok()?.trim())
}

/// As the kernel writes sets of cores: `0-3,8` (cpuset(7), "List format").
fn parse(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (first..=last.min(CpuSet::MAX_CPU - 1)).for_each(|core| set.set(core));
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_as_the_kernel_writes_them() {
        let cores = |list: &str| -> Option<Vec<usize>> {
            let set = parse(list)?;
            Some((0..64).filter(|core| set.is_set(*core)).collect())
        };
        assert_eq!(cores("0"), Some(vec![0]));
        assert_eq!(cores("0-2,5,8-9"), Some(vec![0, 1, 2, 5, 8, 9]));
        assert_eq!(cores(""), None);
        assert_eq!(cores("a-b"), None);
    }
}
