//! What the agent asks of the kernel side, as a trait: unit tests put a recorder in its place.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use underpass_ebpf::tier::{Tier, Variant};
use underpass_ebpf::{Capture, Detached, Error, Layout, PodSpec};

use super::joining::TierOrReason;

/// The programs and maps of one node, as far as the agent handles them. Everything in it outlives the agent.
pub trait Kernel: Send {
    /// Lets the processes of a cgroup past the programs.
    ///
    /// # Errors
    /// When the map is full or may not be written.
    fn exempt(&self, cgroup: u64) -> Result<(), Error>;
    /// Takes that back.
    ///
    /// # Errors
    /// When the map may not be written.
    fn unexempt(&self, cgroup: u64) -> Result<(), Error>;
    /// The cgroups that are let past, by this agent or one before it.
    ///
    /// # Errors
    /// When the map may not be read.
    fn exempted(&self) -> Result<Vec<u64>, Error>;
    /// Takes the connections of a cgroup to pods for probes.
    ///
    /// # Errors
    /// When the map is full or may not be written.
    fn trust_probes_of(&self, cgroup: u64) -> Result<(), Error>;
    /// Captures a pod, or gives a captured pod other listeners.
    ///
    /// # Errors
    /// When a program is refused or a map is full.
    fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), Error>;
    /// Refuses or takes up what a pod connects to.
    ///
    /// # Errors
    /// When the pod is not enrolled.
    fn set_refusing(&self, cookie: u64, refusing: bool) -> Result<(), Error>;
    /// Frees a pod.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    fn withdraw(&self, cookie: u64) -> Result<(), Error>;
    /// Cookies and slots of the pods that the kernel knows.
    ///
    /// # Errors
    /// When the map may not be read.
    fn pods(&self) -> Result<Vec<(u64, u32)>, Error>;
    /// The cookie of the captured pod that an address belongs to.
    ///
    /// # Errors
    /// When the map may not be read.
    fn owner(&self, address: IpAddr) -> Result<Option<u64>, Error>;
    /// The map of handshakes, and that of notes, which proxies are given.
    fn maps(&self) -> [BorrowedFd<'_>; 2];
    /// Who moves flows to the kernel, or why nobody does.
    fn tier(&self) -> TierOrReason;
    /// Forgets what proxies announced and did not use, in all namespaces.
    ///
    /// # Errors
    /// When the map may not be written.
    fn sweep(&self) -> Result<(), Error>;
    /// Ends capture on this node; says what was removed.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn detach(&self) -> Result<Detached, Error>;
}

/// The real one.
pub struct RealKernel {
    capture: Capture,
    tier: TierOrReason,
    layout: Layout,
}

impl RealKernel {
    /// Loads and attaches the programs, or takes over those that an earlier agent left. Flows are moved in a variant that the self-test has
    /// found to behave, or in `untested`.
    ///
    /// # Errors
    /// When the kernel, the privileges or the mounts do not allow it.
    pub fn start(layout: Layout, untested: Option<Variant>) -> Result<Self, Error> {
        let capture = Capture::start(&layout)?;
        let started = match untested {
            None => Tier::start(&capture),
            Some(variant) => {
                let advice = "whether redirected bytes reach applications here has not been tested; this is for tests";
                tracing::warn!(variant = variant.name(), advice);
                Tier::start_untested(&capture, variant)
            }
        };
        let tier: TierOrReason = match started {
            Ok(tier) => {
                if let Some(error) = tier.is_blind_to_splicing() {
                    let advice = "programs that read by splice(2) are not noticed; only proxies with node.offload.trust_readers move flows to the kernel";
                    tracing::warn!(%error, advice);
                }
                Ok(Arc::new(tier))
            }
            Err(error) => {
                tracing::warn!(%error, "no flow will be moved to the kernel; all go through the proxy");
                Err(error.to_string())
            }
        };
        Ok(Self { capture, tier, layout })
    }
}

impl Kernel for RealKernel {
    fn exempt(&self, cgroup: u64) -> Result<(), Error> {
        self.capture.exempt(cgroup)
    }

    fn unexempt(&self, cgroup: u64) -> Result<(), Error> {
        self.capture.unexempt(cgroup)
    }

    fn exempted(&self) -> Result<Vec<u64>, Error> {
        self.capture.exempted()
    }

    fn trust_probes_of(&self, cgroup: u64) -> Result<(), Error> {
        self.capture.add_kubelet(cgroup)
    }

    fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), Error> {
        self.capture.enrol(pod)
    }

    fn set_refusing(&self, cookie: u64, refusing: bool) -> Result<(), Error> {
        self.capture.set_refusing(cookie, refusing)
    }

    fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        self.capture.withdraw(cookie)
    }

    fn pods(&self) -> Result<Vec<(u64, u32)>, Error> {
        let pods = self.capture.pods()?;
        Ok(pods.into_iter().map(|(cookie, entry)| (cookie, entry.slot)).collect())
    }

    fn owner(&self, address: IpAddr) -> Result<Option<u64>, Error> {
        self.capture.owner(address)
    }

    fn maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.capture.handshakes_fd(), self.capture.notes_fd()]
    }

    fn tier(&self) -> TierOrReason {
        self.tier.clone()
    }

    fn sweep(&self) -> Result<(), Error> {
        self.capture.sweep_handshakes(None)
    }

    fn detach(&self) -> Result<Detached, Error> {
        Capture::detach(&self.layout)
    }
}

/// What a detach removed, for people.
pub fn describe(detached: Detached) -> String {
    match detached.is_empty() {
        true => "nothing was attached".to_owned(),
        false => format!(
            "{} pods freed, {} programs and {} maps removed",
            detached.pods, detached.programs, detached.maps
        ),
    }
}
