//! Where a process of the bench runs: its network namespace and its cores, and the promise that it dies with the bench.
//!
//! Every process, ours or a peer's, is started through this binary's own `launch` subcommand, which moves *itself* into
//! the namespace and onto the cores and then becomes the program. The kernel is asked to kill it when the bench
//! dies, however that happens (SIGINT, panic, SIGKILL), so clean-up needs no code that could be skipped: namespaces
//! are anonymous and vanish with the processes in them.
//!
//! Invariant: processes are started from the bench's main thread only, because the kernel's parent-death signal is
//! tied to the thread that forked.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// A network namespace and a set of cores. The default is the bench's own namespace and any core.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// `/proc/PID/ns/net` of a process in the namespace; `None` = the bench's own.
    pub(crate) namespace: Option<PathBuf>,
    /// Cores the process may use; empty = all that the bench may use.
    pub(crate) cores: Vec<usize>,
    /// Directory of the cgroup that the process is moved into; `None` = the bench's own.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Place {
    /// The same namespace, on these cores only.
    pub(crate) fn on(&self, cores: &[usize]) -> Place {
        Place {
            cores: cores.to_vec(),
            ..self.clone()
        }
    }

    /// The same namespace and cores, in this cgroup.
    pub(crate) fn in_cgroup(&self, cgroup: &Path) -> Place {
        Place {
            cgroup: Some(cgroup.to_owned()),
            ..self.clone()
        }
    }

    /// A command that runs `program` here. Arguments added to it go to the program.
    pub(crate) fn command(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("the bench's own binary can't be found")?);
        command
            .arg("launch")
            .arg("--parent")
            .arg(std::process::id().to_string());
        if let Some(namespace) = &self.namespace {
            command.arg("--namespace").arg(namespace);
        }
        if !self.cores.is_empty() {
            let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
            command.arg("--cores").arg(cores.join(","));
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("--").arg(program);
        Ok(command)
    }

    /// A command that runs a subcommand of this binary here.
    pub(crate) fn own(&self, subcommand: &str) -> Result<Command> {
        let mut command = self.command(&std::env::current_exe()?)?;
        command.arg(subcommand);
        Ok(command)
    }
}

/// Arguments of the hidden `launch` subcommand; [`Place::command`] writes them.
#[derive(Args, Debug)]
pub(crate) struct Launch {
    /// Process id of the bench that started this.
    #[arg(long)]
    parent: i32,
    /// Network namespace to enter (`/proc/PID/ns/net`).
    #[arg(long)]
    namespace: Option<PathBuf>,
    /// Cores to be bound to.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Cgroup to be moved into.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl Launch {
    /// Becomes the program; returns only on failure.
    pub(crate) fn exec(self) -> Result<()> {
        die_with(Pid::from_raw(self.parent))?;
        if let Some(cgroup) = &self.cgroup {
            std::fs::write(cgroup.join("cgroup.procs"), "0")
                .with_context(|| format!("entering {}", cgroup.display()))?;
        }
        if let Some(path) = &self.namespace {
            let namespace =
                File::open(path).with_context(|| format!("network namespace {} is gone", path.display()))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        }
        if !self.cores.is_empty() {
            let mut set = CpuSet::new();
            for core in &self.cores {
                set.set(*core)
                    .with_context(|| format!("core {core} is beyond what sched_setaffinity takes"))?;
            }
            sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("binding to cores {:?}", self.cores))?;
        }
        // Proxies size themselves by the soft limit, and 1024 descriptors are 500 connections.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let (program, arguments) = self.program.split_first().context("launch: no program given")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("starting {}", Path::new(program).display()))
    }
}

/// Asks the kernel to kill this process when `parent` dies, and checks that it hasn't already.
fn die_with(parent: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        bail!("the bench (pid {parent}) that started this is gone");
    }
    Ok(())
}

/// Arguments of the hidden `namespace` subcommand.
#[derive(Args, Debug)]
pub(crate) struct HoldNamespace {
    /// Process id of the bench that started this.
    #[arg(long)]
    parent: i32,
}

impl HoldNamespace {
    /// Makes a network namespace, says `ready`, and keeps it until standard input ends.
    pub(crate) fn run(self) -> Result<()> {
        die_with(Pid::from_raw(self.parent))?;
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        println!("ready");
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
        Ok(())
    }
}

/// The cores this process may run on, lowest first.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect())
}

/// Most file descriptors a process may have open (the hard limit).
pub(crate) fn descriptor_limit() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}
