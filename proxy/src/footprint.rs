//! Gives back the pages of the program that only its start needed.
//!
//! The kernel maps a program's code and constants in pieces around whatever runs first, and keeps counting what was mapped once. What the proxy needs
//! while it serves is a fraction of what parsing arguments and configuration needs; that fraction is mapped again when it runs. The same goes for what a
//! busy hour mapped, once the proxy is idle again.

use std::path::Path;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// How often it is looked whether the proxy is idle, and how much of the program is mapped.
const LOOK: Duration = Duration::from_secs(2);
/// Pages of 4 KiB that may be mapped again before they are given back: what an idle proxy maps by its own timers is less.
const WORTH_IT: u64 = 128;

/// Gives the program's pages back whenever the proxy is idle and has more of them mapped than idling needs. Goes on for ever.
pub async fn keep_small_while(is_idle: impl Fn() -> bool) {
    let mut needed = None;
    loop {
        tokio::time::sleep(LOOK).await;
        if !is_idle() {
            continue;
        }
        let Some(mapped) = mapped_pages_of_files() else {
            continue;
        };
        if needed.is_none_or(|needed| mapped > needed + WORTH_IT) {
            forget_start();
            tokio::time::sleep(LOOK).await;
            // What a burst has mapped meanwhile is not what idling needs.
            needed = mapped_pages_of_files().filter(|_| is_idle());
        }
    }
}

/// Pages of files that this process has mapped and resident: the third figure of /proc/self/statm (proc_pid_statm(5)).
fn mapped_pages_of_files() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(2)?.parse().ok()
}

/// Unmaps the program's code and constants; what is still needed comes back from the page cache. It only saves memory, so that nothing is said
/// when it cannot be done.
pub fn forget_start() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else {
        return;
    };
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in mappings.lines().filter_map(|line| unwritten_of(line, &program)) {
        // SAFETY: a mapping of this process, which is private and which nobody has written to, so that its pages are those of the file
        // and come back the same.
        #[allow(unsafe_code)]
        let _ = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start),
                length,
                Advice::LinuxDontNeed,
            )
        };
    }
}

/// Where a line of /proc/self/maps says that code of `program` is mapped, or its constants: address and length. Constants are at the file's
/// beginning; what else is not writable now was written to when the program was loaded (RELRO).
fn unwritten_of(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (rights, offset) = (fields.next()?, fields.next()?);
    let is_unwritten = rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|digit| digit == b'0'));
    let is_of_program = Path::new(fields.nth(2)?) == program;
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    (is_unwritten && is_of_program).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_programs_own_and_was_never_written_is_found() {
        let program = Path::new("/usr/bin/underpass");
        let line = |rights: &str, path: &str| format!("55d0c8a00000-55d0c8a02000 {rights} 00100000 08:01 77   {path}");
        assert_eq!(
            unwritten_of(&line("r-xp", "/usr/bin/underpass"), program),
            Some((0x55d0_c8a0_0000, 0x2000))
        );
        assert_eq!(unwritten_of(&line("r--p", "/usr/bin/underpass"), program), None);
        assert_eq!(unwritten_of(&line("rw-p", "/usr/bin/underpass"), program), None);
        assert_eq!(unwritten_of(&line("r-xp", "/usr/lib/libc.so.6"), program), None);
        let constants = "1000-3000 r--p 00000000 08:01 77   /usr/bin/underpass";
        assert_eq!(unwritten_of(constants, program), Some((0x1000, 0x2000)));
        assert_eq!(unwritten_of("7ffd-7fff r-xp 0 00:00 0", program), None);
    }

    #[test]
    fn pages_of_files_are_counted() {
        // The test's own code at least.
        assert!(mapped_pages_of_files().is_some_and(|pages| pages > 10));
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        forget_start();
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
