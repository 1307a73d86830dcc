//! bpf(2), as far as this crate needs it beyond loading programs, behind safe functions.
//!
//! aya reads and loads the object; links, pins, queries and map entries go through here, because the agent replaces the program behind
//! a pinned link, asks who else is attached, and because the proxy works with descriptors it was handed, for which a
//! library that first probes the kernel's features would be out of place.
//!
//! This is one of the crate's two rooms with `unsafe`. Each command has its own `repr(C)` struct with the members of its part of
//! `union bpf_attr` (linux/bpf.h), every one of which is written; the kernel reads absent ones as zero.

pub(crate) mod socket_map;
pub(crate) mod test_run;

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `enum bpf_cmd`.
mod command {
    pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const MAP_UPDATE_ELEM: i32 = 2;
    pub(super) const MAP_DELETE_ELEM: i32 = 3;
    pub(super) const PROG_LOAD: i32 = 5;
    pub(super) const OBJ_PIN: i32 = 6;
    pub(super) const OBJ_GET: i32 = 7;
    pub(super) const PROG_GET_FD_BY_ID: i32 = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub(super) const PROG_QUERY: i32 = 16;
    pub(super) const MAP_LOOKUP_BATCH: i32 = 24;
    pub(super) const LINK_CREATE: i32 = 28;
    pub(super) const LINK_UPDATE: i32 = 29;
    pub(super) const LINK_DETACH: i32 = 34;
}

/// `enum bpf_attach_type`, as far as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    SetSockOpt = 22,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    TraceFentry = 24,
    SkLookup = 36,
    TcxEgress = 47,
}

/// Map kinds of `enum bpf_map_type`, as far as used.
pub(crate) mod map_type {
    pub(crate) const HASH: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
    pub(crate) const PERCPU_ARRAY: u32 = 6;
    pub(crate) const SOCKMAP: u32 = 15;
    pub(crate) const SOCKHASH: u32 = 18;
    pub(crate) const SK_STORAGE: u32 = 24;
}

/// `BPF_F_BEFORE` of BPF_LINK_CREATE: at the front of what is attached at the same place.
pub(crate) const BEFORE: u32 = 1 << 3;
/// `BPF_F_QUERY_EFFECTIVE`: also what ancestors contribute, in the order in which it runs.
pub(crate) const EFFECTIVE: u32 = 1;

/// # Safety
/// `attribute` must be the struct of `command`, and every pointer in it valid for what the command does with it.
#[allow(unsafe_code)]
unsafe fn bpf<T>(command: i32, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the struct is live and its size is given; the caller answers for what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// # Safety
/// As [`bpf`], of a command that returns a new descriptor.
#[allow(unsafe_code)]
unsafe fn bpf_fd<T>(command: i32, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller answers for the attribute; the descriptor that is returned is nobody else's.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attribute)?)) }
}

/// A map by its descriptor, with the sizes that the kernel says it has: the buffers of every call are checked against them.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    info: MapInfo,
    value_len: usize,
}

/// The beginning of `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    place: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

impl Map {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info(fd.as_fd())?;
        // The kernel pads each processor's value to 8 bytes (Documentation/bpf/map_array.rst).
        let value_len = match info.kind {
            map_type::PERCPU_ARRAY => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
                (info.value_size as usize).next_multiple_of(8) * cpus
            }
            _ => info.value_size as usize,
        };
        Ok(Self { fd, info, value_len })
    }

    pub(crate) fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Length in bytes of what [`Map::lookup`] fills.
    pub(crate) fn value_len(&self) -> usize {
        self.value_len
    }

    #[allow(unsafe_code)]
    fn element(&self, command: i32, key: &[u8], value: *mut u8, flags: u64) -> io::Result<()> {
        if key.len() != self.info.key_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attribute = Element {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: key.as_ptr() as u64,
            value: value as u64,
            flags,
        };
        // SAFETY: the key has the map's key size; the callers of this private function pass a value of the size that the
        // command reads or writes, or none.
        unsafe { bpf(command, &mut attribute) }.map(drop)
    }

    /// Reads the value of `key` into `value`; false if there is none.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        if value.len() != self.value_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        absent_is_false(self.element(command::MAP_LOOKUP_ELEM, key, value.as_mut_ptr(), 0))
    }

    /// Writes the value of `key`.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.element(command::MAP_UPDATE_ELEM, key, value.as_ptr().cast_mut(), 0)
    }

    /// Deletes `key`; false if there was none.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        absent_is_false(self.element(command::MAP_DELETE_ELEM, key, std::ptr::null_mut(), 0))
    }

    /// Reads the entries of a hash map, whole buckets at a time: one that is there all the while is found, and found once, whatever is
    /// added and deleted meanwhile. `each` is given a key and its value.
    #[allow(unsafe_code)]
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key_len, value_len) = (self.info.key_size as usize, self.value_len);
        let mut capacity = 256;
        let mut place: Option<u32> = None;
        loop {
            let (mut keys, mut values) = (vec![0u8; capacity * key_len], vec![0u8; capacity * value_len]);
            let mut next = 0u32;
            let mut attribute = Batch {
                place: place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64),
                next: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel writes at most `count` keys and values; of a hash map the place is a 32-bit number.
            let answer = unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attribute) };
            let is_last = match answer {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // A bucket with more entries than there is room for.
                    Some(libc::ENOSPC) => {
                        capacity *= 2;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let found = attribute.count as usize;
            for (key, value) in keys
                .chunks_exact(key_len)
                .zip(values.chunks_exact(value_len))
                .take(found)
            {
                each(key, value);
            }
            if is_last {
                return Ok(());
            }
            place = Some(next);
        }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn absent_is_false(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A struct that BPF_OBJ_GET_INFO_BY_FD fills from its beginning.
///
/// # Safety
/// The type must be `repr(C)`, without padding, and every bit pattern of it valid. Pointers that the kernel would follow must be
/// zero.
#[allow(unsafe_code)]
pub(crate) unsafe trait Info: Default {}

// SAFETY: numbers only.
#[allow(unsafe_code)]
unsafe impl Info for MapInfo {}

/// The beginning of `struct bpf_prog_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct ProgramInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    jited_len: u32,
    translated_len: u32,
    jited: u64,
    translated: u64,
    pub(crate) load_time: u64,
    pub(crate) uid: u32,
    map_count: u32,
    maps: u64,
    pub(crate) name: [u8; 16],
}

// SAFETY: numbers only; the lengths and addresses of the buffers that the kernel could fill are zero by default.
#[allow(unsafe_code)]
unsafe impl Info for ProgramInfo {}

/// The beginning of `struct bpf_link_info`, with the widest part of its union that is used.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pad: u32,
    union: [u32; 4],
}

// SAFETY: numbers only; of the links that this crate asks about, none has a buffer to fill.
#[allow(unsafe_code)]
unsafe impl Info for LinkInfo {}

impl LinkInfo {
    /// Of a cgroup link: the cgroup's id; 0 once the cgroup is gone.
    pub(crate) fn cgroup(&self) -> u64 {
        u64::from(self.union[0]) | u64::from(self.union[1]) << 32
    }

    /// Of a netns or tcx link: the namespace's inode, or the device's index; 0 once it is gone.
    pub(crate) fn target(&self) -> u32 {
        self.union[0]
    }
}

#[allow(unsafe_code)]
pub(crate) fn info<T: Info>(fd: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Attribute {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = T::default();
    let mut attribute = Attribute {
        fd: fd.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes to `info`; `Info` promises that any bytes are a value.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attribute) }?;
    Ok(info)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Pins a map, program or link at `path`.
#[allow(unsafe_code)]
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attribute = Object {
        path: path.as_ptr() as u64,
        fd: fd.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    unsafe { bpf(command::OBJ_PIN, &mut attribute) }.map(drop)
}

/// Opens what is pinned at `path`.
#[allow(unsafe_code)]
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attribute = Object {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    unsafe { bpf_fd(command::OBJ_GET, &mut attribute) }
}

/// Loads a classifier that lets everything pass, to try what one can be attached to.
#[allow(unsafe_code)]
pub(crate) fn load_empty_classifier() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
    }
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut attribute = Attribute {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"".as_ptr() as u64,
    };
    // SAFETY: two instructions and a C string.
    unsafe { bpf_fd(command::PROG_LOAD, &mut attribute) }
}

/// Attaches a program to a cgroup or namespace (by descriptor) or to a device (by index).
#[allow(unsafe_code)]
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        /// `relative_fd` and `expected_revision`, for tcx and, since 6.17, cgroups: relative to none, whatever the revision.
        relative: u64,
        revision: u64,
    }
    let mut attribute = Attribute {
        program: program.as_raw_fd() as u32,
        target: match target {
            Target::Fd(fd) => fd.as_raw_fd() as u32,
            Target::Device(index) => index,
        },
        attach_type: attach_type as u32,
        flags,
        relative: 0,
        revision: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(command::LINK_CREATE, &mut attribute) }
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Fd(BorrowedFd<'a>),
    Device(u32),
}

/// Replaces the program of a link, in one step: no packet or call finds neither.
#[allow(unsafe_code)]
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute: [RawFd; 4] = [link.as_raw_fd(), program.as_raw_fd(), 0, 0];
    // SAFETY: no pointers; the members are link_fd, new_prog_fd, flags, old_prog_fd.
    unsafe { bpf(command::LINK_UPDATE, &mut attribute) }.map(drop)
}

/// Detaches a link for whoever holds it.
#[allow(unsafe_code)]
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute: [RawFd; 1] = [link.as_raw_fd()];
    // SAFETY: no pointers; the member is link_fd.
    unsafe { bpf(command::LINK_DETACH, &mut attribute) }.map(drop)
}

/// Ids of the programs attached to a cgroup or namespace, in the order in which they run.
#[allow(unsafe_code)]
pub(crate) fn query(target: BorrowedFd<'_>, attach_type: AttachType, flags: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attribute {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    // A cgroup takes 64 programs of one kind (BPF_CGROUP_MAX_PROGS), and has ancestors.
    let mut ids = [0u32; 1024];
    let mut attribute = Attribute {
        target: target.as_raw_fd() as u32,
        attach_type: attach_type as u32,
        query_flags: flags,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: (size_of_val(&ids) / size_of::<u32>()) as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` ids.
    unsafe { bpf(command::PROG_QUERY, &mut attribute) }?;
    Ok(ids[..attribute.count as usize].to_vec())
}

/// What the kernel says of the program `id`.
#[allow(unsafe_code)]
pub(crate) fn program_info(id: u32) -> io::Result<ProgramInfo> {
    let mut attribute: [u32; 3] = [id, 0, 0];
    // SAFETY: no pointers; the members are prog_id, next_id, open_flags.
    let program = unsafe { bpf_fd(command::PROG_GET_FD_BY_ID, &mut attribute) }?;
    info(program.as_fd())
}
