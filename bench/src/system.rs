//! What is compared: no proxy, a bare copy loop, Underpass, HAProxy and Envoy, each configured to do the same thing.
//!
//! Every proxy gets one TCP listener and one fixed destination, two threads (one per core of the machine that the
//! project measures on), its own defaults for buffers, and no access log. A name may carry the suffix `-b`: the same
//! system a second time, under that label, for an A/A comparison.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::http::{self, Extras};
use crate::place::Place;
use crate::process::Process;

/// Threads that each proxy may use, but where it has a core to itself.
pub(crate) const THREADS: &str = "2";

/// How Envoy is started with so many threads, up to the path of its configuration.
pub(crate) fn envoy_arguments(threads: &str) -> [&str; 6] {
    [
        "--disable-hot-restart",
        "--log-level",
        "warn",
        "--concurrency",
        threads,
        "--config-path",
    ]
}

/// Suffix of a label that means "the same once more".
pub(crate) const AGAIN: &str = "-b";

/// Suffix of one of HTTP that means "with a thousand routes and clusters".
const WITH_MANY: &str = "-1000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    BareRelay,
    Underpass,
    /// Captured pods, all bytes through the proxy.
    Captured,
    /// Captured pods, with the kernel tier.
    Kernel,
    /// Those with all that the mesh adds: identities, certificates, tunnels to other nodes, policies by identity.
    KernelInMesh,
    Haproxy,
    Envoy,
    /// Two nodes with a captured pod each, and a tunnel between them.
    Hbone,
    /// Two Envoys with a tunnel between them.
    EnvoyHbone,
    /// A proxy of HTTP.
    Http,
    /// The same with Envoy.
    EnvoyHttp,
}

impl Kind {
    /// Whether it is two proxies with a tunnel between them: those are compared with each other only.
    pub(crate) fn tunnels(self) -> bool {
        matches!(self, Kind::Hbone | Kind::EnvoyHbone)
    }

    /// Whether it takes HTTP requests, and nothing else.
    pub(crate) fn takes_requests(self) -> bool {
        matches!(self, Kind::Http | Kind::EnvoyHttp)
    }

    /// Whether it is the `underpass` binary.
    fn is_ours(self) -> bool {
        matches!(
            self,
            Kind::Underpass | Kind::Captured | Kind::Kernel | Kind::KernelInMesh | Kind::Hbone | Kind::Http
        )
    }

    /// Whether it captures pods: then the client connects to the server itself.
    pub(crate) fn captures(self) -> bool {
        matches!(self, Kind::Captured | Kind::Kernel | Kind::KernelInMesh)
    }
}

/// One system of a comparison, under the name that the results carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) kind: Kind,
    pub(crate) label: String,
    /// What is configured besides, of HTTP's.
    pub(crate) extras: Extras,
}

impl FromStr for System {
    type Err = anyhow::Error;

    fn from_str(label: &str) -> Result<System> {
        let name = label.strip_suffix(AGAIN).unwrap_or(label);
        let mut parts = name.split('+');
        let name = parts.next().unwrap_or_default();
        let mut extras = Extras::default();
        for part in parts {
            extras.add(part).with_context(|| format!("system {label:?}"))?;
        }
        let name = match name.strip_suffix(WITH_MANY) {
            Some(name) => {
                extras.others = http::MANY;
                name
            }
            None => name,
        };
        let kind: Kind = match name {
            "direct" => Kind::Direct,
            "bare-relay" => Kind::BareRelay,
            "underpass-relay" => Kind::Underpass,
            "underpass-captured" => Kind::Captured,
            "underpass-kernel" => Kind::Kernel,
            "underpass-kernel-mesh" => Kind::KernelInMesh,
            "haproxy" => Kind::Haproxy,
            "envoy" => Kind::Envoy,
            "underpass-hbone" => Kind::Hbone,
            "envoy-hbone" => Kind::EnvoyHbone,
            "underpass-http" => Kind::Http,
            "envoy-http" => Kind::EnvoyHttp,
            _ => bail!(
                "unknown system {label:?}; known: direct, bare-relay, underpass-relay, underpass-captured, underpass-kernel, underpass-kernel-mesh, haproxy, envoy, \
                 underpass-hbone, envoy-hbone, underpass-http, envoy-http, each with -b; the last two with -1000, +rbac, +jwt, +log, +all (and ours with +bare) too"
            ),
        };
        ensure!(
            extras == Extras::default() || kind.takes_requests(),
            "system {label:?}: only proxies of HTTP have more"
        );
        Ok(System {
            kind,
            label: label.to_owned(),
            extras,
        })
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// Where the programs are.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Programs {
    /// The `underpass` binary.
    #[arg(long, default_value = "target/release/underpass")]
    pub(crate) underpass: PathBuf,
    /// The HAProxy binary.
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    pub(crate) haproxy: PathBuf,
    /// The Envoy binary; scripts/bench-setup.sh puts it here.
    #[arg(long, default_value = ".cache/bench/envoy")]
    pub(crate) envoy: PathBuf,
}

impl Programs {
    /// The program's absolute path, or an error that says how to get it.
    pub(crate) fn find(&self, kind: Kind) -> Result<PathBuf> {
        let path = match kind {
            Kind::Direct => bail!("direct has no program"),
            Kind::BareRelay => return Ok(std::env::current_exe()?),
            Kind::Underpass | Kind::Captured | Kind::Kernel | Kind::KernelInMesh | Kind::Hbone | Kind::Http => {
                &self.underpass
            }
            Kind::Haproxy => &self.haproxy,
            Kind::Envoy | Kind::EnvoyHbone | Kind::EnvoyHttp => &self.envoy,
        };
        path.canonicalize().with_context(|| {
            let remedy = match kind {
                kind if kind.is_ours() => "run `cargo build --release -p underpass`, or pass --underpass PATH",
                _ => "run scripts/bench-setup.sh",
            };
            format!("{} not found: {remedy}", path.display())
        })
    }

    /// One line that tells which version of `kind` this is.
    pub(crate) fn version(&self, kind: Kind) -> Result<String> {
        let argument = if kind == Kind::Haproxy { "-v" } else { "--version" };
        let program = self.find(kind)?;
        let output = Command::new(&program)
            .arg(argument)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("version unknown");
        Ok(version_number(line).to_owned())
    }
}

/// The version in a line like `HAProxy version 2.6.12-1 2026/10/17 - https://…` or `/usr/bin/envoy  version:
/// 9e55…/1.40.0/Clean/RELEASE/BoringSSL`: the first thing between spaces or slashes that is digits and dots to begin with.
fn version_number(line: &str) -> &str {
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    line.split([' ', '/']).find(is_version).unwrap_or(line)
}

/// What a proxy is to do.
#[derive(Clone, Debug)]
pub(crate) struct Task<'a> {
    /// Namespace and cores.
    pub(crate) place: &'a Place,
    /// How many threads it may use.
    pub(crate) threads: &'a str,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Where it connects to.
    pub(crate) destination: SocketAddr,
    /// Port for its admin interface, on the loopback address of `place`.
    pub(crate) admin_port: u16,
    /// Directory for its configuration and log.
    pub(crate) directory: &'a Path,
    /// File name of both, without extension.
    pub(crate) name: String,
}

/// Starts a proxy and waits until it listens. `None` for those that are not one proxy at one address.
pub(crate) fn start(system: &System, programs: &Programs, task: &Task<'_>) -> Result<Option<Process>> {
    let kind = system.kind;
    let (listen, destination) = (task.listen.to_string(), task.destination.to_string());
    let envoy = envoy_arguments(task.threads);
    let (text, extension, arguments): (String, &str, &[&str]) = match kind {
        Kind::Direct | Kind::Captured | Kind::Kernel | Kind::KernelInMesh => return Ok(None),
        Kind::Hbone | Kind::EnvoyHbone => return Ok(None),
        Kind::BareRelay => {
            let arguments = ["bare-relay", "--listen", &listen, "--destination", &destination];
            return launch(&programs.find(kind)?, &arguments, None, task).map(Some);
        }
        Kind::Underpass => (underpass_configuration(task), "yaml", &["run", "--config"]),
        Kind::Http => (http::ours(task, system.extras), "yaml", &["run", "--config"]),
        Kind::EnvoyHttp => (http::envoys(task, system.extras), "yaml", &envoy),
        Kind::Haproxy => (haproxy_configuration(task), "cfg", &["-db", "-f"]),
        Kind::Envoy => (envoy_configuration(task), "yaml", &envoy),
    };
    let path = task.directory.join(format!("{}.{extension}", task.name));
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    launch(&programs.find(kind)?, arguments, Some(&path), task).map(Some)
}

fn launch(program: &Path, arguments: &[&str], configuration: Option<&Path>, task: &Task<'_>) -> Result<Process> {
    let mut command = task.place.command(program)?;
    command.args(arguments).args(configuration);
    let log = task.directory.join(format!("{}.log", task.name));
    Process::start_proxy(command, &log, task.listen.port()).with_context(|| format!("starting {}", task.name))
}

fn underpass_configuration(task: &Task<'_>) -> String {
    let Task {
        listen, destination, ..
    } = task;
    format!(
        "{}  - {{name: relay, address: \"{listen}\", protocol: fixed, destination: \"{destination}\"}}\n",
        node_configuration(task.admin_port, task.threads, NO_LOG)
    )
}

/// Of a node that writes no access log.
pub(crate) const NO_LOG: &str = "{format: \"off\"}";

/// How each configuration of a node with listeners begins, up to those.
pub(crate) fn node_configuration(admin_port: u16, threads: &str, access_log: &str) -> String {
    format!(
        "node:\n  name: bench\n  workers: {threads}\n  admin: \"127.0.0.1:{admin_port}\"\n  log: warn\n  \
         access_log: {access_log}\n  listeners:\n"
    )
}

fn haproxy_configuration(task: &Task<'_>) -> String {
    let Task {
        listen,
        destination,
        threads,
        ..
    } = task;
    format!(
        "global\n  nbthread {threads}\n\
         defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen relay\n  bind {listen}\n  server destination {destination}\n"
    )
}

fn envoy_configuration(task: &Task<'_>) -> String {
    let Task {
        listen,
        destination,
        admin_port,
        ..
    } = task;
    format!(
        r#"admin:
  address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}
static_resources:
  listeners:
  - name: relay
    address: {{socket_address: {{address: "{listen_ip}", port_value: {listen_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: relay
          cluster: destination
  clusters:
  - name: destination
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000}}]}}
    load_assignment:
      cluster_name: destination
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: "{destination_ip}", port_value: {destination_port}}}}}
"#,
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        destination_ip = destination.ip(),
        destination_port = destination.port(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_the_programs_say() {
        assert_eq!(
            version_number("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://x/"),
            "2.6.12-1+deb12u4"
        );
        assert_eq!(
            version_number("./b/envoy  version: 9e5580933/1.40.0/Clean/RELEASE/BoringSSL"),
            "1.40.0"
        );
        assert_eq!(version_number("underpass 0.1.0"), "0.1.0");
    }

    #[test]
    fn a_label_with_the_suffix_is_the_same_system_again() {
        let again: System = "haproxy-b".parse().unwrap();
        assert_eq!((again.kind, again.label.as_str()), (Kind::Haproxy, "haproxy-b"));
        assert!("nginx".parse::<System>().is_err());
        assert!("haproxy-c".parse::<System>().is_err());
    }

    #[test]
    fn what_a_proxy_of_http_does_besides_stands_in_its_label() {
        let both: System = "envoy-http+rbac+jwt-b".parse().unwrap();
        let extras = Extras {
            rbac: true,
            jwt: true,
            ..Extras::default()
        };
        assert_eq!((both.kind, both.extras), (Kind::EnvoyHttp, extras));
        let many: System = "underpass-http-1000".parse().unwrap();
        assert_eq!(many.extras.others, http::MANY);
        assert!("underpass-http+wasm".parse::<System>().is_err());
        assert!("haproxy+rbac".parse::<System>().is_err());
    }
}
