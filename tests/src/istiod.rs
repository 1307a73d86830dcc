//! A real istiod for a test: Istio's own, run without Kubernetes (see `tests/istiod` of the repository).
//!
//! One idea: **a cluster is a folder of YAML files.** What a test writes there istiod sees as objects of a Kubernetes API server, a
//! moment later, and pushes what follows from them. Nothing tells a test that istiod has seen a change but what comes of it: tests wait
//! for that.
//!
//! It listens on a loopback address of the host that it is given, or on the host's own for the nodes beside it, keeps its certificate authority when it is killed and started again,
//! and takes any token whose text says who it is of ([`Istiod::token`]): never let anything but a test near it.

mod objects;

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::sys::signal::Signal;

pub use objects::{Pod, Service, namespace, node};

use crate::authority::Authority;
use crate::process::Process;
use crate::requirement::built_by;
use crate::wait;
use crate::world::{Host, World};

/// Where it serves xDS without TLS.
const PLAIN_PORT: u16 = 15010;
/// Where it serves xDS, and its certificate authority, with TLS.
const SECURE_PORT: u16 = 15012;
/// Where it says that it is ready, and what it has pushed.
const DEBUG_PORT: u16 = 15080;
/// The name in its certificate.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
/// Between two looks at the folder.
const LOOK_EVERY: &str = "20ms";
/// Where an authority is that was plugged in, below its folder.
const PLUGGED_IN: &str = "cacerts";

/// MeshConfig as Istio's Helm chart has it by default, where it matters here.
const MESH_CONFIG: &str = "\
defaultConfig: {discoveryAddress: \"istiod.istio-system.svc:15012\"}
rootNamespace: istio-system
trustDomain: cluster.local
";

/// An istiod that runs until dropped, or killed.
pub struct Istiod {
    host: Host,
    folder: PathBuf,
    output: PathBuf,
    process: Process,
}

impl Istiod {
    /// Starts one on `host` with nothing in its cluster but the namespace of its own, and waits until it serves. Panics with its log when
    /// it doesn't.
    pub fn start(world: &World, host: &Host) -> Self {
        let folder = prepare(world);
        Self::of(world, host.loopback(), folder, None)
    }

    /// As [`Istiod::start`], for all nodes of the world: it listens on the address of `host`, which the others reach.
    pub fn start_for_all(world: &World, host: &Host) -> Self {
        let folder = prepare(world);
        Self::of(world, host.clone(), folder, None)
    }

    /// As [`Istiod::start_for_all`], with the authority of [`Istiod::plug_in`] instead of one of its own making.
    pub fn start_plugged_in(world: &World, host: &Host, authority: PluggedIn<'_>) -> Self {
        let folder = prepare(world);
        Self::of(world, host.clone(), folder, Some(authority))
    }

    fn of(world: &World, host: Host, folder: PathBuf, authority: Option<PluggedIn<'_>>) -> Self {
        if let Some(authority) = &authority {
            authority.write(&folder);
        }
        Self {
            process: launch(world.directory(), &host, &folder),
            host,
            folder,
            output: world.directory().to_owned(),
        }
        .serving()
    }

    /// The authority with which an istiod that was [started so](Istiod::start_plugged_in) is started the next time.
    pub fn plug_in(&self, authority: PluggedIn<'_>) {
        authority.write(&self.folder);
    }

    /// Puts objects into the cluster under a name, in the place of what the name stood for.
    pub fn apply(&self, name: &str, yaml: impl Display) {
        // Renamed into place, so that istiod never reads half of it.
        let next = self.folder.join(format!("{name}.next"));
        fs::write(&next, yaml.to_string()).expect("write objects");
        fs::rename(next, object_file(&self.folder, name)).expect("rename objects");
    }

    /// Removes the objects of a name.
    pub fn delete(&self, name: &str) {
        fs::remove_file(object_file(&self.folder, name)).expect("remove objects");
    }

    /// The file with a token bound to a pod of the cluster, `namespace/account/pod`.
    pub fn token(&self, bearer: &str) -> PathBuf {
        let file = self.folder.join("tokens").join(bearer.replace('/', "_"));
        fs::write(&file, bearer).expect("write a token");
        file
    }

    /// The file with the root of its certificate authority.
    pub fn roots(&self) -> PathBuf {
        self.folder.join("certs/root-cert.pem")
    }

    /// Where it serves without TLS.
    pub fn plain(&self) -> SocketAddr {
        self.host.at(PLAIN_PORT)
    }

    /// Where it serves with TLS, as [`SERVER_NAME`].
    pub fn secure(&self) -> SocketAddr {
        self.host.at(SECURE_PORT)
    }

    /// The setting of a node that takes its mesh and its certificates from here: `istiod: {…}`, with the token of `bearer`.
    pub fn settings(&self, bearer: &str) -> String {
        self.settings_with(bearer, "")
    }

    /// As [`Istiod::settings`], with further fields of `istiod`.
    pub fn settings_with(&self, bearer: &str, more: impl Display) -> String {
        let (address, roots, token) = (self.secure(), self.roots(), self.token(bearer));
        format!(
            "istiod: {{address: {:?}, server_name: {SERVER_NAME}, roots: {:?}, token: {:?}, {more}}}",
            address.to_string(),
            roots.display().to_string(),
            token.display().to_string()
        )
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it in its tracks, or lets it go on: it is there, and answers nothing.
    pub fn freeze(&mut self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.process.signal(signal).expect("istiod runs");
    }

    /// Starts it again after [`Istiod::kill`], with the same cluster and certificate authority, and waits until it serves.
    pub fn start_again(&mut self) {
        self.process = launch(&self.output, &self.host, &self.folder);
        self.wait_until_it_serves();
    }

    /// As [`Istiod::start_again`], with another certificate authority.
    pub fn start_again_with_another_authority(&mut self) {
        fs::remove_file(self.folder.join("ca.json")).expect("forget the authority");
        self.start_again();
    }

    /// What it has printed since it was last started.
    pub fn log(&self) -> String {
        self.process.output()
    }

    fn serving(mut self) -> Self {
        self.wait_until_it_serves();
        self
    }

    fn wait_until_it_serves(&mut self) {
        wait::eventually(2 * wait::SOON, "istiod serves", || {
            if let Some(status) = self.process.exit_status() {
                panic!("istiod has ended: {status}\n{}", self.process.last_output());
            }
            self.process.output().lines().any(|line| line == "ready")
        });
    }
}

/// Whose certificates an istiod gives, as an operator plugs it in (Istio: the secret `cacerts`).
pub struct PluggedIn<'a> {
    /// It signs with this one.
    pub signer: &'a Authority,
    /// It tells to believe these.
    pub roots: &'a [&'a Authority],
}

impl PluggedIn<'_> {
    fn write(&self, folder: &Path) {
        let place = folder.join(PLUGGED_IN);
        fs::create_dir_all(&place).expect("a folder for the authority");
        let root = |authority: &&Authority| fs::read_to_string(authority.roots()).expect("a root");
        let signer = root(&self.signer);
        for (name, text) in [
            ("ca-cert.pem", signer.clone()),
            ("cert-chain.pem", signer),
            ("ca-key.pem", self.signer.key()),
            ("root-cert.pem", self.roots.iter().map(root).collect()),
        ] {
            fs::write(place.join(name), text).expect("write the authority");
        }
    }
}

/// A folder for an istiod whose cluster has nothing but the namespace of its own.
fn prepare(world: &World) -> PathBuf {
    let folder = world.directory().join("istiod");
    for part in ["objects", "certs", "tokens"] {
        fs::create_dir_all(folder.join(part)).expect("a folder for istiod");
    }
    fs::write(folder.join("mesh-config.yaml"), MESH_CONFIG).expect("write the mesh's configuration");
    fs::write(object_file(&folder, "istio-system"), namespace("istio-system", "")).expect("write a namespace");
    folder
}

fn object_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("objects").join(format!("{name}.yaml"))
}

fn launch(output: &Path, host: &Host, folder: &Path) -> Process {
    let address = |port| host.at(port).to_string();
    let program = program().expect("a test that needs istiod says so (Need::Istiod)");
    let mut command = Process::command(&program.display().to_string());
    command
        .args(["--grpc", &address(PLAIN_PORT), "--secure-grpc", &address(SECURE_PORT)])
        .args(["--http", &address(DEBUG_PORT), "--every", LOOK_EVERY])
        .arg("--objects")
        .arg(folder.join("objects"))
        .arg("--mesh-config")
        .arg(folder.join("mesh-config.yaml"))
        .arg("--certs")
        .arg(folder.join("certs"))
        .env("ROOT_CA_DIR", folder.join(PLUGGED_IN))
        // What it leaves behind when it is killed goes with the test.
        .env("TMPDIR", folder);
    if !folder.join(PLUGGED_IN).exists() {
        command.arg("--ca").arg(folder.join("ca.json"));
    }
    Process::start_in(output, host, "istiod", command)
}

/// The program, if `scripts/istiod-setup.sh` has built that of this tree's sources.
pub(crate) fn program() -> Option<&'static Path> {
    static PROGRAM: LazyLock<Option<PathBuf>> = LazyLock::new(|| built_by("istiod-setup.sh"));
    PROGRAM.as_deref()
}
