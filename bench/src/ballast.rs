//! Free memory that is held while a run measures, on a virtual machine whose host takes free memory back.
//!
//! Where the guest reports its free pages (`page_reporting` in the kernel), a page that has been free for a moment is the host's, and whoever is given
//! it next waits until the host has found another: 10 µs for 4 KiB, measured, against 0.3 µs to copy them. Whether a sample is hit depends on the order in
//! which the kernel hands its free pages out, not on the system that is measured: the same stream ran at 0.35 and at 5 GB/s. With
//! nearly all free memory in somebody's hands the kernel uses the same few pages again and again, as a machine without such a host does with all.

use std::fs;

use anyhow::{Context, Result};

/// What stays free: for the programs of a sample, and what the kernel keeps for bad times.
const LEFT_KB: usize = 768 << 10;
const PAGE: usize = 4096;

/// Memory that is held until this is dropped.
pub(crate) struct Ballast(Vec<u8>);

impl Ballast {
    /// Takes what is free, if the host would else.
    pub(crate) fn take() -> Result<Ballast> {
        if !fs::exists("/sys/module/page_reporting")? {
            return Ok(Ballast(Vec::new()));
        }
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let free_kb = free_kb(&meminfo).context("no MemFree in /proc/meminfo")?;
        let mut memory = vec![0u8; free_kb.saturating_sub(LEFT_KB) << 10];
        // Zeroed memory is not there before it is written to.
        memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        Ok(Ballast(memory))
    }

    /// A sentence for the report; none if there is nothing to say.
    pub(crate) fn description(&self) -> Option<String> {
        let held = self.0.len() >> 20;
        (held > 0).then(|| format!("The host takes free memory back; {held} MiB of it were held meanwhile."))
    }
}

fn free_kb(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24683796 kB\nMemFree:         8571004 kB\nMemAvailable:   22652004 kB\n";
        assert_eq!(free_kb(text), Some(8_571_004));
        assert_eq!(free_kb("MemTotal: 1 kB\n"), None);
    }
}
