//! The servers, behind a proxy that leads to each by the beginning of the path.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use underpass_tests::{Host, Need, Process, Proxy, World, available};

use super::source;

/// A program that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);
/// What `/large` has, in bytes.
const LARGE: usize = 8 << 20;
/// What all servers and the harness need.
const PROGRAMS: [Need; 4] = [
    Need::Program("nginx"),
    Need::Program("nghttpd"),
    Need::Program("go"),
    Need::Program("sha256sum"),
];

/// A server, and what it is spoken to by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Nginx1,
    Nginx2,
    Nghttpd,
    Go1,
    Go2,
}

impl Server {
    pub(super) const ALL: [Self; 5] = [Self::Nginx1, Self::Nginx2, Self::Nghttpd, Self::Go1, Self::Go2];

    /// What it can be asked for beside files and uploads.
    pub(super) fn deeds(self) -> &'static str {
        match self {
            Self::Nginx1 | Self::Nginx2 => "early",
            Self::Nghttpd => "-",
            Self::Go1 | Self::Go2 => "early,trailers",
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn protocol(self) -> &'static str {
        match self {
            Self::Nginx1 | Self::Go1 => "http1",
            Self::Nginx2 | Self::Nghttpd | Self::Go2 => "http2",
        }
    }

    /// Go's serves both by one port.
    fn port(self) -> u16 {
        match self {
            Self::Nginx1 => 9001,
            Self::Nginx2 => 9002,
            Self::Nghttpd => 9003,
            Self::Go1 | Self::Go2 => 9004,
        }
    }
}

/// A proxy between a client's host and the servers.
pub(super) struct Place {
    pub(super) world: World,
    pub(super) client: Host,
    at: SocketAddr,
    sha256: String,
    _servers: Vec<Process>,
    _proxy: Proxy,
}

impl Place {
    /// None if there is not what this and the client `needs`.
    pub(super) fn start(needs: &[Need]) -> Option<Self> {
        if !available(&PROGRAMS) || !available(needs) {
            return None;
        }
        let world = World::loopback();
        let [client, us, them] = [(); 3].map(|()| world.host());
        let www = world.directory().join("www");
        fs::create_dir(&www).expect("a folder");
        fs::write(www.join("small"), "x".repeat(1000)).expect("write");
        let large: Vec<u8> = (0..LARGE).map(|_| fastrand::u8(..)).collect();
        fs::write(www.join("large"), large).expect("write");
        let said = Command::new("sha256sum")
            .arg(www.join("large"))
            .output()
            .expect("it runs");
        let said = String::from_utf8(said.stdout).expect("text");
        let file = world.directory().join("http.yaml");
        fs::write(&file, yaml(&us, &them)).expect("write the configuration");
        Some(Self {
            _servers: servers(&world, &them),
            _proxy: Proxy::start_with_file(&world, &us, file),
            at: us.at(8080),
            sha256: said.split(' ').next().expect("a sum").to_owned(),
            client,
            world,
        })
    }

    /// Where a server's paths begin.
    pub(super) fn base(&self, server: Server) -> String {
        format!("http://{}/{}", self.at, server.name())
    }

    /// The sum of `/large`.
    pub(super) fn sha256(&self) -> String {
        self.sha256.clone()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// Runs a client to its end; answers what it said. It has to succeed.
    pub(super) fn run(&self, name: &str, command: Command) -> String {
        Process::run(&self.world, &self.client, name, command, DEADLINE)
    }
}

fn yaml(us: &Host, them: &Host) -> String {
    let (at, admin) = (us.at(8080), us.at(15000));
    let (mut clusters, mut routes) = (String::new(), String::new());
    for server in Server::ALL {
        let (name, protocol, address) = (server.name(), server.protocol(), them.at(server.port()));
        clusters += &format!("  - {{name: {name}, protocol: {protocol}, endpoints: ['{address}']}}\n");
        routes += &format!(
            "      - {{match: {{prefix: /{name}/}}, forward: {{cluster: {name}, prefix_rewrite: /, timeout: 100s}}}}\n"
        );
    }
    format!(
        "node: {{name: a, admin: '{admin}', access_log: {{format: off}}, listeners: [{{name: http, address: '{at}', protocol: http, routes: t}}]}}
http:
  clusters:
{clusters}  routes:
  - name: t
    virtual_hosts:
    - name: all
      domains: ['*']
      routes:
{routes}"
    )
}

fn servers(world: &World, them: &Host) -> Vec<Process> {
    let directory = world.directory().display();
    let mut nginx = Process::command("nginx");
    fs::write(world.directory().join("nginx.conf"), nginx_conf(world, them)).expect("write");
    nginx.args([
        "-e",
        &format!("{directory}/nginx-error.log"),
        "-c",
        &format!("{directory}/nginx.conf"),
    ]);
    let mut nghttpd = Process::command("nghttpd");
    nghttpd
        .args([
            "--no-tls",
            "--echo-upload",
            "--address",
            &them.ip().to_string(),
            "--htdocs",
            &format!("{directory}/www"),
        ])
        .arg(Server::Nghttpd.port().to_string());
    let mut go = Process::command(&go_program());
    go.args([
        "serve",
        &them.at(Server::Go1.port()).to_string(),
        &format!("{directory}/www"),
    ]);
    let started = [
        ("nginx", nginx, Server::Nginx2),
        ("nghttpd", nghttpd, Server::Nghttpd),
        ("go", go, Server::Go1),
    ];
    let mut running = Vec::new();
    for (name, command, server) in started {
        let mut process = Process::start(world, them, name, command);
        process.wait_for_port(them, them.at(server.port()));
        running.push(process);
    }
    running
}

/// Files can be put and got; `/early` takes small bodies only.
fn nginx_conf(world: &World, them: &Host) -> String {
    let directory = world.directory().display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|module| format!("{module}_temp_path {directory}/{module};\n"))
        .concat();
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let (one, two) = (them.at(Server::Nginx1.port()), them.at(Server::Nginx2.port()));
    format!(
        "daemon off; master_process off; {user} pid {directory}/nginx.pid; error_log {directory}/nginx-error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{ {temporary} access_log off; client_max_body_size 0;\n\
         server {{ listen {one}; listen {two} http2; root {directory}/www; dav_methods PUT;\n\
         location /early {{ client_max_body_size 1k; }} }} }}\n"
    )
}

/// The compiled server and client of `programs/http`, which have no dependencies.
pub(super) fn go_program() -> String {
    static BUILT: OnceLock<String> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("http-program");
        let mut build = Process::command("go");
        build
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(source("http"));
        let built = build.output().expect("start go");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        program.display().to_string()
    });
    built.clone()
}
