//! The compiled programs, and how they get into the kernel.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::MapData;
use aya::programs::{
    CgroupSockAddr, CgroupSockopt, FEntry, Program, ProgramError, SchedClassifier, SkLookup, SkMsg, SkSkb, SockOps,
};
use aya::{Btf, Ebpf, EbpfLoader};
use underpass_ebpf_abi::tier::{FlowEntry, MAX_FLOWS, SOCKETS_PER_FLOW, Way};
use underpass_ebpf_abi::{Counter, MAX_ADDRESSES, MAX_CGROUPS, MAX_HANDSHAKES, MAX_PODS};

use crate::bpf::{AttachType, Map, MapInfo, map_type};
use crate::bpffs::{Pins, pin_error};
use crate::error::Error;
use crate::table::bytes_of_slice;
use crate::tier;

/// Built by `make ebpf`.
#[cfg(not(feature = "mutants"))]
fn object() -> &'static [u8] {
    static OBJECT: &[u8] = aya::include_bytes_aligned!("../underpass.bpf.o");
    OBJECT
}

/// One that the tests are to see the fault of: scripts/tier-mutants.sh.
#[cfg(feature = "mutants")]
fn object() -> &'static [u8] {
    static OBJECT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    OBJECT.get_or_init(|| {
        let path = std::env::var_os("UNDERPASS_EBPF_OBJECT").expect("UNDERPASS_EBPF_OBJECT");
        std::fs::read(&path).expect("UNDERPASS_EBPF_OBJECT can be read")
    })
}

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

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
pub(crate) const MAPS: [Shape; 13] = [
    shape("PODS", map_type::HASH, 8, 48, MAX_PODS, NO_PREALLOC),
    shape("SLOTS", map_type::ARRAY, 4, 16, MAX_PODS, 0),
    shape("ADDRESSES", map_type::HASH, 16, 8, MAX_ADDRESSES, NO_PREALLOC),
    shape("EXEMPT", map_type::HASH, 8, 4, MAX_CGROUPS, NO_PREALLOC),
    shape("KUBELET", map_type::HASH, 8, 4, MAX_CGROUPS, NO_PREALLOC),
    shape("HANDSHAKES", map_type::HASH, 32, 24, MAX_HANDSHAKES, NO_PREALLOC),
    shape("NOTES", map_type::SK_STORAGE, 4, 24, 0, NO_PREALLOC),
    shape("LISTENERS", map_type::SOCKMAP, 4, 4, MAX_PODS * 2, 0),
    shape("COUNTERS", map_type::PERCPU_ARRAY, 4, 8, Counter::ALL.len() as u32, 0),
    shape(
        "FLOWS",
        map_type::ARRAY,
        4,
        size_of::<FlowEntry>() as u32,
        MAX_FLOWS,
        MMAPABLE,
    ),
    shape("WAYS", map_type::SK_STORAGE, 4, size_of::<Way>() as u32, 0, NO_PREALLOC),
    shape("SOCKS", map_type::SOCKHASH, 8, 4, MAX_FLOWS * SOCKETS_PER_FLOW, 0),
    shape("SOCKS_VERDICT", map_type::SOCKHASH, 8, 4, MAX_FLOWS * 2, 0),
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
    hasher.write(object());
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

    /// The programs of which there is one instance.
    pub(crate) fn of_node(&mut self) -> Result<Loaded, Error> {
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
        loader.load(object()).map(Loaded).map_err(|source| Error::Object {
            source: Box::new(source),
        })
    }
}

fn loader(pins: Option<&Pins>) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // Without them nothing can be joined, and the programs do not look.
    if let Ok(offsets) = tier::offsets() {
        loader.override_global("OFFSETS", bytes_of_slice(std::slice::from_ref(offsets)), true);
    }
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
    /// One of the maps.
    pub(crate) fn map(&self, name: &str) -> io::Result<Map> {
        let map = self.0.map(name).ok_or(io::ErrorKind::NotFound)?;
        let data: &MapData = match map {
            aya::maps::Map::Array(data) | aya::maps::Map::SockHash(data) | aya::maps::Map::SkStorage(data) => data,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Map::new(data.fd().as_fd().try_clone_to_owned()?)
    }

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
            Program::SkMsg(_) => <&mut SkMsg>::try_from(&mut *program)?.load()?,
            Program::SkSkb(_) => <&mut SkSkb>::try_from(&mut *program)?.load()?,
            Program::SkLookup(_) => <&mut SkLookup>::try_from(&mut *program)?.load()?,
            Program::FEntry(_) => {
                let types = Btf::from_sys_fs()?;
                <&mut FEntry>::try_from(&mut *program)?.load("tcp_splice_read", &types)?;
            }
            _ => <&mut SchedClassifier>::try_from(&mut *program)?.load()?,
        }
        let fd = program.fd()?.as_fd().try_clone_to_owned();
        fd.map_err(ProgramError::IOError)
    }
}
