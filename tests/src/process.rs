//! A program that ends with its test: stopped when dropped, killed by the kernel if the test dies first.

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::requirement::find_program;
use crate::wait;
use crate::world::{Host, World};

/// How long a program may take to stop by itself before it is killed.
const STOP: Duration = Duration::from_secs(5);
/// How much of a program's output a failure shows.
const SHOWN_LINES: usize = 40;

/// A running program; its output goes to a file of the world.
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// A command that runs `program` (from `PATH` or Debian's folders outside it) as it is, but killed when its starter dies.
    pub fn command(program: &str) -> Command {
        Self::command_as(program, &[])
    }

    /// As [`Process::command`], under another user: `["--reuid=postgres", "--regid=postgres", "--init-groups"]`.
    pub fn command_as(program: &str, user: &[&str]) -> Command {
        let path = find_program(program).unwrap_or_else(|| PathBuf::from(program));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(user).arg("--").arg(path);
        command.stdin(Stdio::null());
        command
    }

    /// Starts `command` on `host`; `name` names its output file and its failures.
    pub fn start(world: &World, host: &Host, name: &str, command: Command) -> Self {
        Self::start_in(world.directory(), host, name, command)
    }

    /// As [`Process::start`], with the output's file in this folder.
    pub(crate) fn start_in(folder: &Path, host: &Host, name: &str, command: Command) -> Self {
        let mut command = host.prepare(command);
        let (output, file) = output_file(folder, name);
        command.stdout(file.try_clone().expect("dup")).stderr(file);
        let child = host.spawn(command).unwrap_or_else(|e| panic!("start {name}: {e}"));
        Self {
            name: name.to_owned(),
            child,
            output,
        }
    }

    /// Runs `command` on `host` to its end. Panics with its output when it fails or is still running after `deadline`.
    pub fn run(world: &World, host: &Host, name: &str, command: Command, deadline: Duration) -> String {
        let mut process = Self::start(world, host, name, command);
        let status = process.wait(deadline);
        let output = process.output();
        assert!(status.success(), "{name}: {status}\n{output}");
        output
    }

    /// Waits for its end. Panics when it still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait::some(deadline, &what, || self.exit_status())
    }

    /// How it ended, if it did.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waitpid of a child of ours")
    }

    /// Waits until something accepts connections at `address` (seen from `from`). Panics with its output when it ends instead.
    pub fn wait_for_port(&mut self, from: &Host, address: std::net::SocketAddr) -> TcpStream {
        let what = format!("{} listens on {address}", self.name);
        wait::some(wait::SOON, &what, || {
            if let Some(status) = self.exit_status() {
                panic!("{} ended: {status}\n{}", self.name, self.output());
            }
            from.connect(address).ok()
        })
    }

    /// What it has printed so far, both streams.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// The last lines of what it has printed, for a failure's message.
    pub fn last_output(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Its process id, valid until it is dropped.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.open_files().count()
    }

    /// How many of its descriptors are sockets.
    pub fn sockets(&self) -> usize {
        let links = self.open_files().filter_map(|entry| fs::read_link(entry.path()).ok());
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    }

    fn open_files(&self) -> impl Iterator<Item = fs::DirEntry> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        folder.expect("the process runs").flatten()
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal. An error when it has ended (and only then: the id is ours until it is waited for).
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.exit_status().is_some() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} has ended", self.name),
            ));
        }
        let pid = i32::try_from(self.child.id()).expect("a process id fits an i32");
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let end = Instant::now() + STOP;
        if self.signal(Signal::SIGTERM).is_ok() {
            while self.exit_status().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that no other process of the world writes to.
fn output_file(directory: &Path, name: &str) -> (PathBuf, File) {
    let make = |n: u32| {
        let path = directory.join(format!("{name}.{n}.output"));
        File::create_new(&path).map(|file| (path, file))
    };
    (0..).find_map(|n| make(n).ok()).expect("some number is free")
}

/// A binary of this package, which cargo builds into the folder above the test's.
pub(crate) fn beside_test(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    folder.join(name)
}
