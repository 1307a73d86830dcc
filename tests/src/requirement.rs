//! What a test needs of the machine: a test that can't run here fails in CI, and elsewhere says why it was skipped.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::capture;
use crate::collector;
use crate::deploy;
use crate::envoy;
use crate::grpc;
use crate::h2spec;
use crate::istiod;

/// Something a machine may lack.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root, for network namespaces and for servers that give up their privileges.
    Root,
    /// A program on `PATH` or among Debian's PostgreSQL programs.
    Program(&'static str),
    /// What capture needs of the kernel: cgroup2 and bpf(2), and what the harness looks at them with.
    Capture,
    /// A real istiod (scripts/istiod-setup.sh).
    Istiod,
    /// h2spec (scripts/h2spec-setup.sh).
    H2spec,
    /// grpc-go's interop client and server (scripts/grpc-setup.sh).
    GrpcInterop,
    /// A collector of OpenTelemetry (scripts/collector-setup.sh).
    Collector,
    /// A stock Envoy (scripts/envoy-setup.sh).
    Envoy,
    /// Helm, and what decodes Kubernetes objects (scripts/deploy-setup.sh).
    Deployment,
    /// As `Capture`, where the kernel lets the pods' devices be guarded: what a pod sends past connect(2) is stopped.
    Guard,
    /// As `Capture`, where the kernel moves connections from socket to socket as applications expect.
    KernelTier,
}

/// Whether all of `needs` are here. If not: panics where `CI` is set, otherwise prints why the test is skipped (past the test
/// runner's capture, so that it is seen) and answers false.
#[track_caller]
#[must_use]
pub fn available(needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(Need::missing).collect();
    if missing.is_empty() {
        return true;
    }
    let why = missing.join(", ");
    assert!(env::var_os("CI").is_none(), "this test can't run here: {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
    false
}

impl Need {
    fn missing(&self) -> Option<String> {
        match self {
            Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "needs root".to_owned()),
            Need::Capture => missing_for_capture(),
            Need::Istiod => {
                let why = "needs an istiod: run scripts/istiod-setup.sh, which builds it";
                istiod::program().is_none().then(|| why.to_owned())
            }
            Need::H2spec => {
                let why = "needs h2spec: run scripts/h2spec-setup.sh, which builds it";
                h2spec::program().is_none().then(|| why.to_owned())
            }
            Need::GrpcInterop => {
                let why = "needs grpc-go's interop programs: run scripts/grpc-setup.sh, which builds them";
                grpc::interop().is_none().then(|| why.to_owned())
            }
            Need::Collector => {
                let why = "needs a collector of OpenTelemetry: run scripts/collector-setup.sh, which builds it";
                collector::program().is_none().then(|| why.to_owned())
            }
            Need::Envoy => {
                let why = "needs Envoy: run scripts/envoy-setup.sh, which fetches it";
                (!envoy::program().is_file()).then(|| why.to_owned())
            }
            Need::Deployment => {
                let why = "needs Helm: run scripts/deploy-setup.sh, which builds it";
                deploy::programs().is_none().then(|| why.to_owned())
            }
            Need::Guard => missing_for_capture().or_else(|| {
                let why = "this kernel has no tcx (Linux 6.6), so no pod is guarded";
                (!capture::can_guard()).then(|| why.to_owned())
            }),
            Need::KernelTier => missing_for_capture().or_else(|| {
                let why = capture::why_no_tier()?;
                Some(format!("this kernel has no kernel tier: {why}"))
            }),
            Need::Program(name) => find_program(name)
                .is_none()
                .then(|| format!("needs the program {name} (see scripts/test-setup.sh)")),
        }
    }
}

fn missing_for_capture() -> Option<String> {
    let programs = ["ip", "bpftool", "setsid"].map(Need::Program);
    let missing = [Need::Root].iter().chain(&programs).find_map(Need::missing);
    missing.or_else(|| {
        let lacks = |have: bool, what: &str| (!have).then(|| format!("needs {what}"));
        lacks(
            capture::cgroup2_mount().is_some(),
            "a cgroup2 mount (mount -t cgroup2 none DIRECTORY)",
        )
        .or_else(|| lacks(capture::is_bpf_usable(), "bpf(2)"))
    })
}

/// The program that a script of this repository builds, if it has built that of this tree's sources.
pub(crate) fn built_by(script: &str) -> Option<PathBuf> {
    place_of(script).filter(|place| place.is_file())
}

/// The folder of programs that a script of this repository builds, if it has begun to.
pub(crate) fn folder_of(script: &str) -> Option<PathBuf> {
    place_of(script).filter(|place| place.is_dir())
}

fn place_of(script: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(script);
    let said = Command::new(script).arg("--where").output().ok()?;
    Some(PathBuf::from(String::from_utf8(said.stdout).ok()?.trim()))
}

/// Where `name` is: on `PATH`, in the system folders that an ordinary user's `PATH` lacks, or among PostgreSQL's programs (whose
/// server Debian does not put on `PATH`; the real ones are preferred to any wrapper).
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let on_path = env::var_os("PATH").unwrap_or_default();
    postgres_folders()
        .into_iter()
        .chain(env::split_paths(&on_path))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn postgres_folders() -> Vec<PathBuf> {
    let Ok(versions) = Path::new("/usr/lib/postgresql").read_dir() else {
        return Vec::new();
    };
    versions.flatten().map(|version| version.path().join("bin")).collect()
}
