//! A program's server behind a relay, and what the relay and the log count.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use underpass_tests::{AccessLine, Config, Host, Listen, Process, Proxy, World, wait};

/// A program that takes longer hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A program's server behind a fixed listener.
pub(crate) struct Place {
    proxy: Proxy,
    proxy_host: Host,
    pub(crate) client: Host,
    pub(crate) server: Host,
    pub(crate) port: u16,
    pub(crate) world: World,
}

impl Place {
    pub(crate) fn start(port: u16) -> Self {
        let world = World::loopback();
        let [proxy_host, client, server] = [(); 3].map(|()| world.host());
        let config = Config::new()
            .listener("relay", proxy_host.at(15001), Listen::fixed(server.at(port)))
            .workload("shop/server", server.ip(), "");
        let proxy = Proxy::start(&world, &proxy_host, &config);
        Self {
            proxy,
            proxy_host,
            client,
            server,
            port,
            world,
        }
    }

    pub(crate) fn relay(&self) -> SocketAddr {
        self.proxy_host.at(15001)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn serve(&self, command: Command) -> Process {
        let mut process = Process::start(&self.world, &self.server, "server", command);
        process.wait_for_port(&self.client, self.server.at(self.port));
        process
    }

    /// Runs the command line of a client to its end; answers what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        self.run_command("client", command(line))
    }

    pub(crate) fn run_command(&self, name: &str, command: Command) -> String {
        Process::run(&self.world, &self.client, name, command, DEADLINE)
    }

    /// The log lines, once at least so many connections have been made and all have ended.
    pub(crate) fn lines(&self, least: usize) -> Vec<AccessLine> {
        wait::some(
            wait::SOON,
            &format!("{least} connections have ended and are logged"),
            || {
                let (metrics, lines) = (self.proxy.metrics(), self.proxy.access_lines());
                let count = |what: &str| metrics.sum(&format!("kmesh_tcp_workload_connections_{what}_total"), &SOURCE);
                let done = count("opened") == count("closed") && count("closed") == lines.len() as u64;
                (done && lines.len() >= least).then_some(lines)
            },
        )
    }

    /// Bytes sent and received as the metrics count them, once all of at least so many connections have ended. The log's lines must
    /// say the same.
    pub(crate) fn settled(&self, least: usize) -> (u64, u64) {
        let lines = self.lines(least);
        let metrics = self.proxy.metrics();
        let counted =
            ["sent", "received"].map(|what| metrics.sum(&format!("kmesh_tcp_workload_{what}_bytes_total"), &SOURCE));
        let logged = ["sent_bytes", "received_bytes"].map(|key| lines.iter().map(|line| line.number(key)).sum::<u64>());
        assert_eq!(counted, logged, "metrics and log agree");
        counted.into()
    }
}

const SOURCE: [(&str, &str); 1] = [("reporter", "source")];

/// A command from a line without quotes: what is between spaces is an argument.
pub(crate) fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Process::command(words.next().expect("a program"));
    command.args(words);
    command
}

/// The number that follows `label` in `text`.
#[track_caller]
pub(crate) fn number_after(text: &str, label: &str) -> u64 {
    let (_, rest) = text
        .split_once(label)
        .unwrap_or_else(|| panic!("no {label:?} in: {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number after {label:?} in: {text}"))
}
