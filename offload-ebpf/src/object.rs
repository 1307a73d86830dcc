//! The compiled programs, and how they get into the kernel.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{CgroupSockAddr, CgroupSockopt, Program, ProgramError, SchedClassifier, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use underpass_ebpf_abi::{Counter, MAX_ADDRESSES, MAX_CGROUPS, MAX_HANDSHAKES, MAX_PODS};

use crate::bpf::{AttachType, Map, MapInfo, map_type};
use crate::bpffs::{Pins, pin_error};
use crate::error::Error;

/// Built by `make ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../underpass.bpf.o");

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// A map as this version makes it.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

const fn shape(name: &'static str, kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> Shape {
    Shape {
        name,
        kind,
        key,
        value,
        entries,
        flags,
    }
}

/// The maps, which the programs share and which outlive the agent.
pub(crate) const MAPS: [Shape; 9] = [
    shape("PODS", map_type::HASH, 8, 48, MAX_PODS, NO_PREALLOC),
    shape("SLOTS", map_type::ARRAY, 4, 16, MAX_PODS, 0),
    shape("ADDRESSES", map_type::HASH, 16, 8, MAX_ADDRESSES, NO_PREALLOC),
    shape("EXEMPT", map_type::HASH, 8, 4, MAX_CGROUPS, NO_PREALLOC),
    shape("KUBELET", map_type::HASH, 8, 4, MAX_CGROUPS, NO_PREALLOC),
    shape("HANDSHAKES", map_type::HASH, 32, 24, MAX_HANDSHAKES, NO_PREALLOC),
    shape("NOTES", map_type::SK_STORAGE, 4, 24, 0, NO_PREALLOC),
    shape("LISTENERS", map_type::SOCKMAP, 4, 4, MAX_PODS * 2, 0),
    shape("COUNTERS", map_type::PERCPU_ARRAY, 4, 8, Counter::ALL.len() as u32, 0),
];

/// The programs attached to the cgroup, in the order in which they are: what remembers before what rewrites.
pub(crate) const CGROUP_PROGRAMS: [(&str, AttachType); 6] = [
    ("follow", AttachType::SockOps),
    ("getpeername4", AttachType::GetPeerName4),
    ("getpeername6", AttachType::GetPeerName6),
    ("setsockopt", AttachType::SetSockOpt),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];

impl Shape {
    fn matches(&self, info: &MapInfo) -> bool {
        (self.kind, self.key, self.value, self.entries, self.flags)
            == (info.kind, info.key_size, info.value_size, info.max_entries, info.flags)
    }

    /// Opens the pinned map; `None` if it is not there.
    pub(crate) fn open(&self, pins: &Pins) -> Result<Option<Map>, Error> {
        let pin = pins.map(self.name);
        let opened = crate::bpf::open_pinned(&pin).and_then(Map::new);
        match opened {
            Ok(map) if self.matches(map.info()) => Ok(Some(map)),
            Ok(map) => Err(Error::Incompatible {
                map: pin.display().to_string(),
                found: format!("{:?}", map.info()),
                needed: format!("{self:?}"),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(pin_error("open", &pin, source)),
        }
    }
}

/// Tells one build of the programs from another.
pub(crate) fn identity() -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(OBJECT);
    format!("{:016x}", hasher.finish())
}

/// Constants of program instances. They live in statics because the loader borrows them.
static NUMBERS: [u32; MAX_PODS as usize] = {
    let mut numbers = [0; MAX_PODS as usize];
    let mut number = 0;
    while number < MAX_PODS {
        numbers[number as usize] = number;
        number += 1;
    }
    numbers
};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: u32 = 14;

/// Makes program instances. It keeps the loader, whose making costs more than all of its work (it reads the types of the running
/// kernel, which our programs do not need), and the instances that serve many pods.
#[derive(Debug)]
pub(crate) struct Programs {
    pins: Option<Pins>,
    loader: Option<EbpfLoader<'static>>,
    ethernet_guard: Option<OwnedFd>,
    bare_guard: Option<OwnedFd>,
}

impl Programs {
    /// Of the pinned maps; maps that are not there will be made. Without `pins` the maps are as short-lived as the programs.
    pub(crate) fn new(pins: Option<&Pins>) -> Self {
        Self {
            pins: pins.cloned(),
            loader: None,
            ethernet_guard: None,
            bare_guard: None,
        }
    }

    /// The programs of the cgroup.
    pub(crate) fn of_cgroup(&mut self) -> Result<Loaded, Error> {
        self.load(0, 0)
    }

    /// `inbound` for the pod of a slot.
    pub(crate) fn inbound(&mut self, slot: u32) -> Result<OwnedFd, Error> {
        self.load(slot, 0)?.program("inbound")
    }

    /// `guard` for devices with link-layer headers of [`ETHERNET`] or 0 bytes.
    pub(crate) fn guard(&mut self, link_header: u32) -> Result<BorrowedFd<'_>, Error> {
        let made = if link_header == 0 {
            self.bare_guard.take()
        } else {
            self.ethernet_guard.take()
        };
        let program = made.map_or_else(|| self.load(0, link_header)?.program("guard"), Ok)?;
        let place = if link_header == 0 {
            &mut self.bare_guard
        } else {
            &mut self.ethernet_guard
        };
        let program: &OwnedFd = place.insert(program);
        Ok(program.as_fd())
    }

    fn load(&mut self, slot: u32, link_header: u32) -> Result<Loaded, Error> {
        let loader = self.loader.get_or_insert_with(|| loader(self.pins.as_ref()));
        loader
            .override_global("POD_SLOT", &NUMBERS[slot as usize], true)
            .override_global("LINK_HEADER", &NUMBERS[link_header as usize], true);
        loader.load(OBJECT).map(Loaded).map_err(|source| Error::Object {
            source: Box::new(source),
        })
    }
}

fn loader(pins: Option<&Pins>) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    if let Some(pins) = pins {
        for map in &MAPS {
            loader.map_pin_path(map.name, pins.map(map.name));
        }
    }
    loader
}

/// The object with its maps made, or found where they are pinned.
pub(crate) struct Loaded(Ebpf);

impl Loaded {
    /// Loads one program into the kernel. It stays there for as long as the descriptor, or a link made with it.
    pub(crate) fn program(&mut self, name: &str) -> Result<OwnedFd, Error> {
        self.try_program(name).map_err(|source| Error::Program {
            program: name.to_owned(),
            source: Box::new(source),
        })
    }

    fn try_program(&mut self, name: &str) -> Result<OwnedFd, ProgramError> {
        let program = self.0.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        match program {
            Program::CgroupSockAddr(_) => <&mut CgroupSockAddr>::try_from(&mut *program)?.load()?,
            Program::CgroupSockopt(_) => <&mut CgroupSockopt>::try_from(&mut *program)?.load()?,
            Program::SockOps(_) => <&mut SockOps>::try_from(&mut *program)?.load()?,
            Program::SkLookup(_) => <&mut SkLookup>::try_from(&mut *program)?.load()?,
            _ => <&mut SchedClassifier>::try_from(&mut *program)?.load()?,
        }
        let fd = program.fd()?.as_fd().try_clone_to_owned();
        fd.map_err(ProgramError::IOError)
    }
}
