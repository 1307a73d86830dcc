//! The cgroups of one capture instance, and the janitor that removes them whatever happens to the test.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process;

/// Where cgroup2 is mounted, if it is: what the kernel's own list of mounts says.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    // DEVICE PATH TYPE OPTIONS …
    lines.find_map(|fields| (fields.get(2) == Some(&"cgroup2")).then(|| fields[1].into()))
}

/// Whether the kernel takes bpf(2) from this process: it has its filesystem, and that can be asked for by root.
pub fn is_bpf_usable() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) && nix::unistd::geteuid().is_root()
}

/// `<cgroup2>/underpass-test-PID-N` and what is in it.
pub(super) struct CgroupTree {
    top: PathBuf,
    janitor: Child,
    /// Its end tells the janitor that the test is over.
    alive: Option<ChildStdin>,
}

impl CgroupTree {
    /// A fresh tree; `folders` are removed with it.
    pub(super) fn new(folders: &[&Path]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = cgroup2_mount().expect("a cgroup2 mount (see Need::Capture)");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = mount.join(format!("underpass-test-{}-{number}", std::process::id()));
        fs::create_dir(&top).unwrap_or_else(|e| panic!("make the cgroup {}: {e}", top.display()));
        // Not killed with the test, that is its point: so without `setpriv --pdeathsig`, and in a session of its own (Ctrl-C).
        let mut janitor = Command::new("setsid")
            .arg(process::beside_test("inside"))
            .arg("janitor")
            .arg(&top)
            .args(folders)
            .stdin(Stdio::piped())
            .spawn()
            .expect("start the janitor");
        let alive = janitor.stdin.take();
        Self { top, janitor, alive }
    }

    /// The uppermost cgroup; programs of ours are attached one level below.
    pub(super) fn top(&self) -> &Path {
        &self.top
    }

    /// The cgroup `path` below the top, made if it is not there.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        let cgroup = self.top.join(path);
        fs::create_dir_all(&cgroup).unwrap_or_else(|e| panic!("make the cgroup {}: {e}", cgroup.display()));
        cgroup
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        self.alive.take();
        let _ = self.janitor.wait();
        assert!(
            std::thread::panicking() || !self.top.exists(),
            "the janitor has left {}",
            self.top.display()
        );
    }
}

/// The janitor's life: waits for the end of standard input, kills what is left in `cgroup`, removes it and `folders`.
pub fn run_janitor(cgroup: &Path, folders: &[PathBuf]) -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    fs::write(cgroup.join("cgroup.kill"), "1")?;
    let end = std::time::Instant::now() + crate::wait::soon();
    // A killed process leaves its cgroup a moment later.
    while remove_tree(cgroup).is_err() && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    for folder in folders {
        let _ = fs::remove_dir_all(folder);
    }
    remove_tree(cgroup)
}

/// Removes a cgroup and all below it; a cgroup's files go with it.
pub(super) fn remove_tree(cgroup: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}
