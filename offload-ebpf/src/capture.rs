//! The capture of a node: loaded, pinned and attached.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use underpass_ebpf_abi::{Counter, HandshakeKey, Note, PEER, PodEntry, Slot};

use crate::bpf::{Map, Target};
use crate::bpffs::{self, Pins};
use crate::cgroup;
use crate::error::Error;
use crate::guard;
use crate::links::{self, Place};
use crate::object::{self, CGROUP_PROGRAMS, MAPS, Programs};
use crate::table::Table;
use crate::tier;

/// Where a capture lives. Two captures with different directories and cgroups know nothing of each other.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Directory in bpffs for what is pinned, such as `/sys/fs/bpf/underpass`.
    pub pin_dir: PathBuf,
    /// The cgroup to which the programs are attached: the pods and the agent are under it.
    pub cgroup: PathBuf,
}

/// A capture that is loaded and attached. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Capture {
    pub(crate) pins: Pins,
    pub(crate) maps: Maps,
    pub(crate) programs: Mutex<Programs>,
    pub(crate) can_guard: bool,
}

/// The maps that the agent reads and writes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) pods: Table<u64, PodEntry>,
    pub(crate) slots: Table<u32, Slot>,
    pub(crate) addresses: Table<[u8; 16], u64>,
    exempt: Table<u64, u32>,
    kubelet: Table<u64, u32>,
    pub(crate) handshakes: Table<HandshakeKey, Note>,
    notes: Table<i32, Note>,
    pub(crate) listeners: Table<u32, i32>,
    counters: Map,
}

/// What was removed by [`Capture::detach`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Programs detached from the cgroup.
    pub programs: usize,
    /// Pods that were enrolled.
    pub pods: usize,
    /// Maps removed.
    pub maps: usize,
}

impl Detached {
    /// Whether there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the programs counted since they were attached, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// One counter.
    pub fn get(&self, counter: Counter) -> u64 {
        let (_, name) = Counter::ALL[counter as usize];
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All counters with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(name, count)| (*name, *count))
    }
}

impl Capture {
    /// Loads, pins and attaches the programs, or adopts what an earlier agent pinned: its maps with all that is in them, and its programs
    /// if they are of the same build. Otherwise they are replaced one by one, in place.
    ///
    /// # Errors
    /// When this process lacks privileges, is outside the cgroup, or the kernel refuses a program; when pinned maps are of
    /// another layout.
    pub fn start(layout: &Layout) -> Result<Self, Error> {
        cgroup::contains_this_process(&layout.cgroup)?;
        let pins = Pins::new(&layout.pin_dir);
        pins.prepare()?;
        for map in &MAPS {
            map.open(&pins)?;
        }
        let mut programs = Programs::new(Some(&pins));
        if !is_adoptable(&pins, layout)? {
            attach(&mut programs, &pins, layout)?;
        }
        let capture = Self {
            maps: Maps::open(&pins)?,
            programs: Mutex::new(programs),
            can_guard: guard::is_possible(),
            pins,
        };
        if capture.pins.read_identity().as_deref() != Some(&object::identity()) {
            capture.replace_pod_programs()?;
            capture.pins.write_identity(&object::identity())?;
        }
        Ok(capture)
    }

    /// Whether the kernel lets the pods' devices be guarded: what a pod sends past connect(2), by raw sockets for instance, is then stopped.
    pub fn is_guarding(&self) -> bool {
        self.can_guard
    }

    /// Removes everything of a capture: what is attached, even if an agent is still running, and what is pinned.
    ///
    /// # Errors
    /// When this process lacks the privileges; calling it again goes on where it stopped.
    pub fn detach(layout: &Layout) -> Result<Detached, Error> {
        let pins = Pins::new(&layout.pin_dir);
        let mut detached = Detached::default();
        pins.forget_identity()?;
        end_flows(&pins)?;
        for pin in bpffs::list(&pins.links())? {
            detached.programs += usize::from(links::remove(&pin)?);
        }
        for pod in bpffs::list(&pins.pods())? {
            remove_pod_links(&pod)?;
            detached.pods += 1;
        }
        for pin in bpffs::list(&pins.maps())? {
            detached.maps += usize::from(bpffs::remove(&pin)?);
        }
        for directory in [&pins.links(), &pins.pods(), &pins.maps(), pins.root()] {
            bpffs::remove_directory(directory)?;
        }
        Ok(detached)
    }

    /// Lets the members of a cgroup connect past the capture: proxies, agents.
    ///
    /// # Errors
    /// When the map is full.
    pub fn exempt(&self, cgroup_id: u64) -> Result<(), Error> {
        self.maps
            .exempt
            .set(&cgroup_id, &1)
            .map_err(map_error("write", "EXEMPT"))
    }

    /// Ends [`Capture::exempt`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn unexempt(&self, cgroup_id: u64) -> Result<(), Error> {
        let removed = self.maps.exempt.remove(&cgroup_id);
        removed.map(drop).map_err(map_error("write", "EXEMPT"))
    }

    /// The exempt cgroups.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn exempted(&self) -> Result<Vec<u64>, Error> {
        self.maps.exempt.keys().map_err(map_error("read", "EXEMPT"))
    }

    /// Lets connections from a cgroup of the host's namespace reach pods as they are: the kubelet's probes.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_kubelet(&self, cgroup_id: u64) -> Result<(), Error> {
        self.maps
            .kubelet
            .set(&cgroup_id, &1)
            .map_err(map_error("write", "KUBELET"))
    }

    /// Ends [`Capture::add_kubelet`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_kubelet(&self, cgroup_id: u64) -> Result<(), Error> {
        let removed = self.maps.kubelet.remove(&cgroup_id);
        removed.map(drop).map_err(map_error("write", "KUBELET"))
    }

    /// The cgroups whose connections count as probes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn kubelets(&self) -> Result<Vec<u64>, Error> {
        self.maps.kubelet.keys().map_err(map_error("read", "KUBELET"))
    }

    /// What the programs counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, Error> {
        let counters = &self.maps.counters;
        let mut per_cpu = vec![0; counters.value_len()];
        let mut sums = BTreeMap::new();
        for (counter, name) in Counter::ALL {
            let key = (counter as u32).to_ne_bytes();
            counters
                .lookup(&key, &mut per_cpu)
                .map_err(map_error("read", "COUNTERS"))?;
            let values = per_cpu.as_chunks().0.iter();
            sums.insert(name, values.map(|bytes| u64::from_ne_bytes(*bytes)).sum());
        }
        Ok(Counters(sums))
    }

    /// How many handshakes of a pod's captured connections are under way now.
    ///
    /// # Errors
    /// When the pod is not enrolled.
    pub fn pending_handshakes(&self, cookie: u64) -> Result<u64, Error> {
        let pod = self.pod(cookie)?.ok_or(Error::UnknownPod { cookie })?;
        let slot = self.maps.slots.get(&pod.slot).map_err(map_error("read", "SLOTS"))?;
        // Programs on other processors may count an end before its beginning.
        Ok(slot.map_or(0, |slot| slot.handshakes.cast_signed().max(0).cast_unsigned()))
    }

    /// The connections on their way, captured and announced.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn handshakes(&self) -> Result<Vec<(HandshakeKey, Note)>, Error> {
        self.maps.handshakes.entries().map_err(map_error("read", "HANDSHAKES"))
    }

    /// The map `HANDSHAKES`, for the proxy.
    pub fn handshakes_fd(&self) -> BorrowedFd<'_> {
        self.maps.handshakes.as_fd()
    }

    /// The map `NOTES`, for the proxy.
    pub fn notes_fd(&self) -> BorrowedFd<'_> {
        self.maps.notes.as_fd()
    }

    /// Forgets the connections that a proxy announced and did not live to make, in one namespace or in all: whoever happened to use the
    /// announced source address next would be let through. Captured connections on their way stay noted; the kernel
    /// forgets them itself when they end.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn sweep_handshakes(&self, netns: Option<u64>) -> Result<(), Error> {
        self.remove_handshakes(|key, note| note.kind == PEER && netns.is_none_or(|netns| key.netns == netns))
    }

    pub(crate) fn remove_handshakes(&self, is_gone: impl Fn(&HandshakeKey, &Note) -> bool) -> Result<(), Error> {
        let error = map_error("sweep", "HANDSHAKES");
        let sweep = || {
            for (key, note) in self.maps.handshakes.entries()? {
                if is_gone(&key, &note) {
                    self.maps.handshakes.remove(&key)?;
                }
            }
            Ok(())
        };
        sweep().map_err(error)
    }
}

impl Maps {
    fn open(pins: &Pins) -> Result<Self, Error> {
        let open = |name: &'static str| {
            let shape = MAPS.iter().find(|map| map.name == name);
            let map = shape.map(|shape| shape.open(pins)).transpose()?.flatten();
            map.ok_or_else(|| bpffs::pin_error("open", &pins.map(name), io::ErrorKind::NotFound.into()))
        };
        Ok(Self {
            pods: Table::new(open("PODS")?),
            slots: Table::new(open("SLOTS")?),
            addresses: Table::new(open("ADDRESSES")?),
            exempt: Table::new(open("EXEMPT")?),
            kubelet: Table::new(open("KUBELET")?),
            handshakes: Table::new(open("HANDSHAKES")?),
            notes: Table::new(open("NOTES")?),
            listeners: Table::new(open("LISTENERS")?),
            counters: open("COUNTERS")?,
        })
    }
}

/// Joined flows go back to their proxies; their sockets leave the maps as they close. Maps of another version have flows that this one cannot tell.
fn end_flows(pins: &Pins) -> Result<(), Error> {
    let shape = MAPS.iter().find(|map| map.name == "FLOWS");
    match shape.map(|shape| shape.open(pins)).transpose() {
        Ok(Some(Some(flows))) => tier::end_all(flows.as_fd()).map_err(map_error("map", "FLOWS")),
        Ok(_) | Err(Error::Incompatible { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether what is pinned is what this version would make: then nothing needs to be loaded.
fn is_adoptable(pins: &Pins, layout: &Layout) -> Result<bool, Error> {
    if pins.read_identity().as_deref() != Some(&object::identity()) {
        return Ok(false);
    }
    let cgroup = cgroup::open(&layout.cgroup)?;
    for (program, attach_type) in CGROUP_PROGRAMS {
        let place = place(layout, cgroup.as_fd(), attach_type)?;
        if !links::is_attached(&pins.link(program), &place)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Loads the programs of the cgroup, and attaches them or puts them in the place of those that are attached.
fn attach(programs: &mut Programs, pins: &Pins, layout: &Layout) -> Result<(), Error> {
    let cgroup = cgroup::open(&layout.cgroup)?;
    let mut object = programs.of_node()?;
    for (program, attach_type) in CGROUP_PROGRAMS {
        let fd = object.program(program)?;
        let place = place(layout, cgroup.as_fd(), attach_type)?;
        links::attach(fd.as_fd(), &place, &pins.link(program))?;
    }
    Ok(())
}

fn place<'a>(layout: &Layout, cgroup: BorrowedFd<'a>, attach_type: crate::bpf::AttachType) -> Result<Place<'a>, Error> {
    let id = cgroup::cgroup_id(&layout.cgroup).map_err(|source| Error::Cgroup {
        path: layout.cgroup.clone(),
        source,
    })?;
    Ok(Place {
        attach_type,
        target: Target::Fd(cgroup),
        id,
        name: format!("cgroup {}", layout.cgroup.display()),
    })
}

/// Removes what is attached to a pod's namespace and devices, given the directory where it is pinned; false if there was none.
pub(crate) fn remove_pod_links(directory: &std::path::Path) -> Result<bool, Error> {
    for pin in bpffs::list(directory)? {
        links::remove(&pin)?;
    }
    bpffs::remove_directory(directory)
}

/// For `map_err`.
pub(crate) fn map_error(action: &'static str, map: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Map { action, map, source }
}
