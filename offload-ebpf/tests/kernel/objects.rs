//! bpf(2) for the tests: which kernel objects there are, and programs of others.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: i32 = 0;
const PROG_LOAD: i32 = 5;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_CREATE: i32 = 28;
const LINK_GET_FD_BY_ID: i32 = 30;

fn bpf<T>(command: i32, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the callers below pass the struct of the command, with pointers to what is alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn bpf_fd<T>(command: i32, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is new.
    bpf(command, attribute).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens what is pinned.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    bpf_fd(OBJ_GET, &mut [path.as_ptr() as u64, 0])
}

/// The first words of what the kernel says of an object: for a link type, id, program; for a program and a map type, id.
fn info(fd: &OwnedFd) -> [u32; 64] {
    let mut info = [0; 64];
    let mut attribute = [(fd.as_raw_fd() as u64) | (16 << 32), info.as_mut_ptr() as u64];
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute).unwrap();
    info
}

/// An object in the kernel, by its kind and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    Map(u32),
    Link(u32),
    Program(u32),
}

impl Object {
    pub fn exists(self) -> bool {
        let (command, id) = match self {
            Self::Map(id) => (MAP_GET_FD_BY_ID, id),
            Self::Link(id) => (LINK_GET_FD_BY_ID, id),
            Self::Program(id) => (PROG_GET_FD_BY_ID, id),
        };
        bpf_fd(command, &mut [id, 0, 0]).is_ok()
    }
}

/// The pins under `directory` with the link and its program, or the map, that is pinned there; ordered by path.
pub fn pinned(directory: &Path) -> Vec<(String, Vec<Object>)> {
    let mut objects = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            objects.extend(pinned(&path));
        } else if !entry.file_type().unwrap().is_symlink() {
            let fd = open_pin(&path).unwrap();
            let [_, id, program, ..] = info(&fd);
            let is_map = path.components().any(|part| part.as_os_str() == "maps");
            let found = match is_map {
                true => vec![Object::Map(id)],
                false => vec![Object::Link(id), Object::Program(program)],
            };
            objects.push((path.strip_prefix("/sys/fs/bpf").unwrap().display().to_string(), found));
        }
    }
    objects
}

/// All objects of [`pinned`].
pub fn all_pinned(directory: &Path) -> Vec<Object> {
    pinned(directory).into_iter().flat_map(|(_, objects)| objects).collect()
}

/// Pins a hash map of another shape than any of ours.
pub fn pin_strange_map(path: &Path) {
    let [hash, key, value, entries] = [1u32, 4, 4, 1];
    let map = bpf_fd(MAP_CREATE, &mut [hash, key, value, entries, 0]).unwrap();
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    bpf(OBJ_PIN, &mut [path.as_ptr() as u64, map.as_raw_fd() as u64]).unwrap();
}

/// Somebody else's connect4 program, attached to `cgroup` for as long as this lives: sends what is for `from` to `to`.
pub struct Rewriter {
    _link: OwnedFd,
    pub program: u32,
}

pub const REWRITER_NAME: &str = "foreign_lb";

impl Rewriter {
    pub fn attach(cgroup: &Path, from: [u8; 4], to: [u8; 4]) -> Self {
        Self::try_attach(cgroup, from, to, 0).unwrap()
    }

    /// Whether this kernel lets a program be attached in front of the others at a cgroup (Linux 6.17).
    pub fn can_be_in_front(cgroup: &Path) -> bool {
        const BEFORE: u32 = 1 << 3;
        match Self::try_attach(cgroup, [0; 4], [0; 4], BEFORE) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn try_attach(cgroup: &Path, from: [u8; 4], to: [u8; 4], flags: u32) -> io::Result<Self> {
        let program = load_rewriter(from, to);
        let cgroup = std::fs::File::open(cgroup).unwrap();
        const CGROUP_INET4_CONNECT: u32 = 10;
        let [program_fd, target] = [program.as_raw_fd() as u32, cgroup.as_fd().as_raw_fd() as u32];
        let link = bpf_fd(LINK_CREATE, &mut [program_fd, target, CGROUP_INET4_CONNECT, flags])?;
        Ok(Self {
            _link: link,
            program: info(&program)[1],
        })
    }
}

fn load_rewriter(from: [u8; 4], to: [u8; 4]) -> OwnedFd {
    /// `struct bpf_insn`: code, registers, offset, immediate.
    fn instruction(code: u8, registers: u8, offset: i16, immediate: [u8; 4]) -> u64 {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = immediate;
        u64::from_le_bytes([code, registers, low, high, a, b, c, d])
    }
    let none = [0; 4];
    let program = [
        instruction(0x61, 0x12, 4, none), // r2 = *(u32 *)(r1 + 4), the destination
        instruction(0x56, 0x02, 2, from), // if w2 != from skip 2
        instruction(0xb4, 0x02, 0, to),   // w2 = to
        instruction(0x63, 0x21, 4, none), // *(u32 *)(r1 + 4) = r2
        instruction(0xb7, 0x00, 0, [1, 0, 0, 0]),
        instruction(0x95, 0, 0, none),
    ];
    #[repr(C)]
    struct Attribute {
        kind: u32,
        count: u32,
        program: u64,
        license: u64,
        log: [u32; 4],
        version: u32,
        flags: u32,
        name: [u8; 16],
        device: u32,
        expected_attach_type: u32,
    }
    let mut name = [0; 16];
    name[..REWRITER_NAME.len()].copy_from_slice(REWRITER_NAME.as_bytes());
    let mut attribute = Attribute {
        kind: 18,
        count: program.len() as u32,
        program: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 4],
        version: 0,
        flags: 0,
        name,
        device: 0,
        expected_attach_type: 10,
    };
    // BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT.
    bpf_fd(PROG_LOAD, &mut attribute).unwrap()
}

/// The keys of a map with keys of 64 bits.
pub fn keys(map: &OwnedFd) -> Vec<u64> {
    const MAP_GET_NEXT_KEY: i32 = 4;
    let mut keys = Vec::<u64>::new();
    loop {
        let (last, mut next) = (keys.last(), 0u64);
        let last = last.map_or(0, |key| std::ptr::from_ref(key) as u64);
        let mut attribute = [map.as_raw_fd() as u64, last, std::ptr::from_mut(&mut next) as u64];
        if bpf(MAP_GET_NEXT_KEY, &mut attribute).is_err() {
            return keys;
        }
        keys.push(next);
    }
}

/// Writes the value at `index` of an array.
pub fn write_array(map: &OwnedFd, index: u32, value: &[u8]) {
    const MAP_UPDATE_ELEM: i32 = 2;
    let key = std::ptr::from_ref(&index) as u64;
    let mut attribute = [map.as_raw_fd() as u64, key, value.as_ptr() as u64, 0];
    bpf(MAP_UPDATE_ELEM, &mut attribute).unwrap();
}

/// Somebody else's map of sockets, with room for one.
pub struct ForeignSockMap(OwnedFd);

impl ForeignSockMap {
    pub fn new() -> Self {
        let [sockmap, key, value, entries] = [15u32, 4, 4, 1];
        Self(bpf_fd(MAP_CREATE, &mut [sockmap, key, value, entries, 0]).unwrap())
    }

    pub fn insert(&self, socket: std::os::fd::BorrowedFd<'_>) {
        write_array(&self.0, 0, &socket.as_raw_fd().to_ne_bytes());
    }

    pub fn remove(&self) {
        const MAP_DELETE_ELEM: i32 = 3;
        let key = 0u32;
        bpf(
            MAP_DELETE_ELEM,
            &mut [self.0.as_raw_fd() as u64, std::ptr::from_ref(&key) as u64],
        )
        .unwrap();
    }
}
