//! A running `underpass`, seen as its operator sees it: file, admin address, logs, signals.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::access_log::{AccessLine, Tail};
use crate::admin::{self, Answer, Metrics};
use crate::config::Config;
use crate::process::Process;
use crate::wait;
use crate::world::{Host, World};

/// Where every proxy of a world has its admin address: one proxy, one host.
const ADMIN_PORT: u16 = 15000;

/// A proxy that runs until dropped.
pub struct Proxy {
    process: Process,
    host: Host,
    admin: SocketAddr,
    file: PathBuf,
    access_log: PathBuf,
    tail: Mutex<Tail>,
}

impl Proxy {
    /// Starts the binary on `host` with `config` and waits until it is ready. Panics with its log when it doesn't get there.
    pub fn start(world: &World, host: &Host, config: &Config) -> Self {
        let file = world.directory().join(format!("proxy-{}.yaml", host.ip()));
        fs::write(&file, config.yaml(admin_address(host), &access_log(world, host))).expect("write the configuration");
        Self::run(world, host, file).ready()
    }

    /// As [`Proxy::start`], with a configuration file that is already there (and names the admin address of `host`).
    pub fn start_with_file(world: &World, host: &Host, file: PathBuf) -> Self {
        Self::run(world, host, file).ready()
    }

    /// Starts the binary again on `host` with the configuration file of a proxy that has run there, and further arguments, and waits until it is ready.
    pub fn start_again_with(&self, world: &World, host: &Host, more: &[&str]) -> Self {
        let file = self.file.display().to_string();
        let process = Self::command(world, host, &[&["run", "--config", &file], more].concat());
        Self::of(process, host, self.admin, self.file.clone(), self.access_log.clone()).ready()
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// As [`Proxy::start_with_file`], with these arguments, of which one names the file, and variables in its environment.
    pub fn start_as(
        world: &World,
        host: &Host,
        file: PathBuf,
        arguments: &[String],
        variables: &[(String, String)],
    ) -> Self {
        let process = Self::command_in(world, host, arguments, variables.iter().cloned());
        Self::of(process, host, admin_address(host), file, access_log(world, host)).ready()
    }

    /// Runs `underpass ARGUMENTS` without waiting for anything.
    pub fn command(world: &World, host: &Host, arguments: &[&str]) -> Process {
        Self::command_in(world, host, arguments, [])
    }

    /// As [`Proxy::command`], with these variables in its environment.
    pub fn command_in(
        world: &World,
        host: &Host,
        arguments: &[impl AsRef<OsStr>],
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Process {
        let mut command = Process::command(&binary().display().to_string());
        command.args(arguments).envs(variables);
        Process::start(world, host, &format!("underpass-{}", host.ip()), command)
    }

    fn run(world: &World, host: &Host, file: PathBuf) -> Self {
        let process = Self::command(world, host, &["run", "--config", &file.display().to_string()]);
        Self::of(process, host, admin_address(host), file, access_log(world, host))
    }

    /// A proxy with a configuration file, an admin address and an access log named by `label`, started by what `command` makes of the binary and
    /// of the file. It is not waited for.
    pub(crate) fn launch(
        world: &World,
        host: &Host,
        config: &Config,
        label: &str,
        admin_port: u16,
        command: impl FnOnce(&Path, &Path) -> Command,
    ) -> Self {
        let file = world.directory().join(format!("{label}.yaml"));
        let access_log = access_folder(world).join(format!("{label}.log"));
        let admin = host.loopback().at(admin_port);
        fs::write(&file, config.yaml(admin, &access_log)).expect("write the configuration");
        let process = Process::start(world, host, label, command(&binary(), &file));
        Self::of(process, host, admin, file, access_log)
    }

    fn of(process: Process, host: &Host, admin: SocketAddr, file: PathBuf, access_log: PathBuf) -> Self {
        let tail = Mutex::new(Tail::new(&access_log));
        Self {
            process,
            host: host.loopback(),
            admin,
            file,
            access_log,
            tail,
        }
    }

    /// Waits until it is ready. Panics with its log when it doesn't get there.
    #[must_use]
    pub fn ready(mut self) -> Self {
        let end = Instant::now() + wait::patient(wait::SOON);
        loop {
            let answer = self.try_request("GET", "/ready");
            if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                return self;
            }
            let status = self.process.exit_status();
            if status.is_some() || Instant::now() > end {
                panic!(
                    "the proxy is not ready: {answer:?}, exit {status:?}\n{}",
                    self.process.last_output()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a request to the admin address. Panics when there is no answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> Answer {
        self.try_request(method, path)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.process.last_output()))
    }

    /// Sends a request to the admin address; an error when nothing answers.
    pub fn try_request(&self, method: &str, path: &str) -> std::io::Result<Answer> {
        admin::request(&self.host, self.admin, method, path)
    }

    /// A scrape.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.request("GET", "/metrics").body)
    }

    /// What `/connections` lists.
    #[track_caller]
    pub fn connections(&self) -> Vec<Value> {
        match self.json("/connections") {
            Value::Array(list) => list,
            other => panic!("/connections is not a list: {other}"),
        }
    }

    /// Where its admin server is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// What `/offload` says of the kernel tier.
    #[track_caller]
    pub fn offload(&self) -> Value {
        self.json("/offload")
    }

    /// What `/status` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json("/status")
    }

    /// What the admin server at an address says to `GET path`, whoever's it is.
    pub fn ask_admin(from: &Host, admin: SocketAddr, path: &str) -> std::io::Result<Answer> {
        admin::request(from, admin, "GET", path)
    }

    /// What `/config_dump` says.
    #[track_caller]
    pub fn config_dump(&self) -> Value {
        self.json("/config_dump")
    }

    #[track_caller]
    fn json(&self, path: &str) -> Value {
        let body = self.request("GET", path).body;
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
    }

    /// How many configurations it has applied (`applied`) or refused (`rejected`).
    pub fn config_updates(&self, result: &str) -> u64 {
        self.metrics()
            .sum("underpass_config_updates_total", &[("result", result)])
    }

    /// Replaces the configuration file by a rename and doesn't wait.
    pub fn replace_config(&self, config: &Config) {
        self.replace_file(&config.yaml(self.admin, &self.access_log));
    }

    /// Replaces the configuration file's text by a rename and doesn't wait.
    pub fn replace_file(&self, text: &str) {
        let next = self.file.with_extension("next");
        fs::write(&next, text).expect("write the configuration");
        fs::rename(&next, &self.file).expect("rename the configuration");
    }

    /// Rewrites the configuration file in place, as some editors do.
    pub fn rewrite_file(&self, text: &str) {
        fs::write(&self.file, text).expect("write the configuration");
    }

    /// The configuration file as it is now.
    pub fn config_text(&self) -> String {
        fs::read_to_string(&self.file).expect("read the configuration")
    }

    /// Replaces the configuration and waits until it is in force. Panics when it is refused.
    #[track_caller]
    pub fn apply(&self, config: &Config) {
        let text = config.yaml(self.admin, &self.access_log);
        if text == self.config_text() {
            return;
        }
        let (applied, rejected) = (self.config_updates("applied"), self.config_updates("rejected"));
        self.replace_file(&text);
        wait::eventually(wait::SOON, "the configuration is applied", || {
            let metrics = self.metrics();
            let count = |result| metrics.sum("underpass_config_updates_total", &[("result", result)]);
            assert_eq!(count("rejected"), rejected, "refused: {}", self.process.last_output());
            count("applied") > applied
        });
    }

    /// The access log's line of the connection from `source`, waiting for it, and only once for each line.
    #[track_caller]
    pub fn access_line(&self, source: SocketAddr) -> AccessLine {
        self.take_line(source, |_| true)
    }

    /// As [`Proxy::access_line`], of the connection to `destination`: the port of one that has ended may be another's already.
    #[track_caller]
    pub fn access_line_to(&self, source: SocketAddr, destination: SocketAddr) -> AccessLine {
        let destination = destination.to_string();
        self.take_line(source, |line| line.field("dst.addr") == destination)
    }

    #[track_caller]
    fn take_line(&self, source: SocketAddr, is_it: impl Fn(&AccessLine) -> bool) -> AccessLine {
        wait::some(wait::SOON, &format!("an access log line of {source}"), || {
            self.tail.lock().expect("no holder panics").take(source, &is_it)
        })
    }

    /// All lines of the access log that nobody has taken yet.
    pub fn access_lines(&self) -> Vec<AccessLine> {
        self.tail.lock().expect("no holder panics").lines().clone()
    }

    /// Everything it has printed: its own log.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The process, for signals and its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Of that, what is no page of a file: its own, and nobody else's.
    pub fn anonymous_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = fs::read_to_string(path).expect("the proxy runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect(field);
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number of kB")
            * 1024
    }

    /// Processor time that it has used, in all threads.
    pub fn processor_time(&self) -> Duration {
        // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms (USER_HZ, which is 100 for every program on Linux).
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).expect("the proxy runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the command in brackets");
        let ticks = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("ticks"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.process.descriptors()
    }

    /// How many of its descriptors are sockets.
    pub fn sockets(&self) -> usize {
        self.process.sockets()
    }

    /// Sends SIGTERM and waits for its end.
    pub fn terminate(&mut self, deadline: Duration) -> std::process::ExitStatus {
        self.process.signal(Signal::SIGTERM).expect("the proxy runs");
        self.process.wait(deadline)
    }
}

/// Whatever a test is about: a panic in the proxy fails it.
impl Drop for Proxy {
    fn drop(&mut self) {
        let log = self.log();
        assert!(
            thread::panicking() || !log.contains("panicked at"),
            "the proxy has panicked:\n{log}"
        );
    }
}

/// The admin server has no authentication, and so listens on loopback only.
fn admin_address(host: &Host) -> SocketAddr {
    host.loopback().at(ADMIN_PORT)
}

/// Not in the folder of the configuration file, which the proxy watches.
fn access_log(world: &World, host: &Host) -> PathBuf {
    access_folder(world).join(format!("{}.log", host.ip()))
}

fn access_folder(world: &World) -> PathBuf {
    let folder = world.directory().join("access");
    fs::create_dir_all(&folder).expect("a folder for access logs");
    folder
}

/// The `underpass` binary: `UNDERPASS_BIN`, else the one built beside this test, release before debug.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = env::var_os("UNDERPASS_BIN") {
        return path.into();
    }
    // target/PROFILE/deps/TEST
    let test = env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps");
    let places = ["release", "debug"].map(|profile| target.join(profile).join("underpass"));
    places.iter().find(|path| path.is_file()).cloned().unwrap_or_else(|| {
        panic!(
            "no underpass binary in {}; build it with: cargo build --release -p underpass",
            target.display()
        )
    })
}
