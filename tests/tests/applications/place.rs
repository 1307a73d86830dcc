//! A program's server behind a relay or captured, and what the proxy's metrics and its log count.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use underpass_tests::capture::{Agent, CaptureNode, why_no_tier};
use underpass_tests::{AccessLine, Config, Host, Listen, Need, Process, Proxy, Tiers, World, available, wait};

/// A program that takes longer hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What "mostly in the kernel" means. The first messages of each connection, and what parks, go through the proxy.
const MOSTLY: f64 = 0.7;

/// A program's server, and a client whose every connection goes through the proxy.
pub(crate) struct Place {
    pub(crate) proxy: Proxy,
    pub(crate) client: Host,
    pub(crate) server: Host,
    /// From here the proxy has no part in what goes to the server.
    pub(crate) direct: Host,
    pub(crate) port: u16,
    /// What the client connects to.
    relay: SocketAddr,
    stage: Stage,
}

enum Stage {
    Relayed(World),
    Captured { node: CaptureNode, _agent: Agent },
}

impl Place {
    /// The server is behind a fixed listener, and the client told so. None if there is not what this `needs`.
    pub(crate) fn relayed(port: u16, needs: &[Need]) -> Option<Self> {
        if !available(needs) {
            return None;
        }
        let world = World::loopback();
        let [proxy_host, client, server] = [(); 3].map(|()| world.host());
        let config = Config::new()
            .listener("relay", proxy_host.at(15001), Listen::fixed(server.at(port)))
            .workload("shop/server", server.ip(), "");
        Some(Self {
            proxy: Proxy::start(&world, &proxy_host, &config),
            direct: client.clone(),
            client,
            server,
            port,
            relay: proxy_host.at(15001),
            stage: Stage::Relayed(world),
        })
    }

    /// Client and server are captured pods, and know nothing of it.
    pub(crate) fn captured(port: u16, needs: &[Need]) -> Option<Self> {
        Self::captured_with(Config::new().offload(""), port, needs)
    }

    /// The same, where connections move to the kernel in this variant whatever becomes of them there.
    pub(crate) fn captured_untested(variant: &str, port: u16, needs: &[Need]) -> Option<Self> {
        let start_agent = |node: &CaptureNode| node.start_untested_agent(variant);
        Self::start(Config::new().offload(""), start_agent, port, needs)
    }

    /// The same with programs that read by splice(2). Where the kernel cannot be asked to notice them, nothing moves to the kernel by default.
    pub(crate) fn captured_with_splicing(port: u16, needs: &[Need]) -> Option<Self> {
        Self::captured_with(Config::new(), port, needs)
    }

    fn captured_with(config: Config, port: u16, needs: &[Need]) -> Option<Self> {
        Self::start(config, CaptureNode::start_agent, port, needs)
    }

    fn start(
        config: Config,
        start_agent: impl FnOnce(&CaptureNode) -> Agent,
        port: u16,
        needs: &[Need],
    ) -> Option<Self> {
        if !available(&[Need::Capture]) || !available(needs) {
            return None;
        }
        let node = CaptureNode::new();
        let [client, server] = ["shop/client", "shop/server"].map(|name| node.pod(name));
        let config = [&client, &server].into_iter().fold(config, |config, pod| {
            config.workload_at(pod.name(), &pod.addresses(), "")
        });
        let agent = start_agent(&node);
        let proxy = node.start_proxy(&config);
        for pod in [&client, &server] {
            node.enrol(pod);
        }
        Some(Self {
            proxy,
            client: client.clone(),
            // A pod's talk with itself is not captured.
            direct: server.clone(),
            server: server.clone(),
            port,
            relay: server.at(port),
            stage: Stage::Captured { node, _agent: agent },
        })
    }

    pub(crate) fn world(&self) -> &World {
        match &self.stage {
            Stage::Relayed(world) => world,
            Stage::Captured { node, .. } => node.world(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.world().directory()
    }

    /// Where the client finds the server.
    pub(crate) fn relay(&self) -> SocketAddr {
        self.relay
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn serve(&self, command: Command) -> Process {
        let mut process = Process::start(self.world(), &self.server, "server", command);
        process.wait_for_port(&self.direct, self.server.at(self.port));
        process
    }

    /// Runs the command line of a client to its end; answers what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        self.run_command("client", command(line))
    }

    pub(crate) fn run_command(&self, name: &str, command: Command) -> String {
        Process::run(self.world(), &self.client, name, command, DEADLINE)
    }

    /// Runs the command line of a client that reaches the server without the proxy.
    pub(crate) fn run_direct(&self, line: &str) -> String {
        Process::run(self.world(), &self.direct, "direct", command(line), DEADLINE)
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

    /// Panics unless most bytes of all connections but the first `earlier` went from socket to socket in the kernel, where they can. `what` is
    /// what they have done; all of at least `more` have ended.
    #[track_caller]
    pub(crate) fn assert_in_kernel(&self, what: &str, earlier: usize, more: usize) {
        self.assert_share(MOSTLY, what, earlier, more);
    }

    /// The same with another share than [`MOSTLY`].
    #[track_caller]
    pub(crate) fn assert_share(&self, least: f64, what: &str, earlier: usize, more: usize) {
        let share = self.share(earlier, more);
        println!("{what}: {:.1} % in the kernel; {}", 100.0 * share, self.proxy.offload());
        match self.stage {
            Stage::Captured { .. } => match why_no_tier() {
                None => assert!(share > least, "{what}: {share} of the bytes went in the kernel"),
                Some(why) => assert_eq!(share, 0.0, "{what}: this kernel has no kernel tier: {why}"),
            },
            Stage::Relayed(_) => assert_eq!(share, 0.0, "{what}: there is no agent"),
        }
    }

    /// Panics unless nothing of all connections, so many, went past the proxy.
    #[track_caller]
    pub(crate) fn assert_kept_out(&self, what: &str, connections: usize) {
        let (share, tier) = (self.share(0, connections), self.proxy.offload());
        let is_captured = matches!(self.stage, Stage::Captured { .. });
        let is_blind = || {
            let reason = tier["reason"].as_str();
            reason.is_some_and(|reason| reason.contains("splice(2) would not be noticed"))
        };
        let could_move = tier["state"] == "on" || is_blind() || why_no_tier().is_some();
        assert!(!is_captured || could_move, "there is a kernel tier: {tier}");
        assert_eq!(share, 0.0, "{what}: should be kept out of the kernel");
    }

    /// How much of what all connections but the first `earlier` moved went in the kernel, when at least `more` have ended.
    pub(crate) fn share(&self, earlier: usize, more: usize) -> f64 {
        let mut bytes = Tiers::default();
        for line in &self.lines(earlier + more)[earlier..] {
            bytes += line.tiers();
        }
        bytes.share()
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
