//! Where the running kernel has things, read from its own description of its types (BTF, Documentation/bpf/btf.rst).
//!
//! A reader of what is needed here: the offset of a member, by a path that may go through embedded and anonymous
//! structs, and the value of an enumerator. The file is the kernel's own, but it is read as if it were not: what does
//! not fit together is an error.

use std::io;
use std::sync::OnceLock;

use underpass_ebpf_abi::tier::Offsets;

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// Kinds of types (`BTF_KIND_…`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The offsets of the running kernel, or why they are not known.
pub(crate) fn offsets() -> Result<&'static Offsets, &'static str> {
    static OFFSETS: OnceLock<Result<Offsets, String>> = OnceLock::new();
    let offsets = OFFSETS.get_or_init(|| {
        let bytes = std::fs::read(KERNEL).map_err(|error| format!("{KERNEL}: {error}"))?;
        of_kernel(&bytes).map_err(|error| format!("{KERNEL}: {error}"))
    });
    offsets.as_ref().map_err(String::as_str)
}

fn of_kernel(bytes: &[u8]) -> io::Result<Offsets> {
    let types = Types::parse(bytes)?;
    let bytes = |structure, path| types.member(structure, path)?.in_bytes();
    let repair = types.member("tcp_sock", "repair")?;
    Ok(Offsets {
        write_seq: bytes("tcp_sock", "write_seq")?,
        copied_seq: bytes("tcp_sock", "copied_seq")?,
        callbacks: bytes("tcp_sock", "bpf_sock_ops_cb_flags")?,
        repair: [repair.bits / 8, 1 << (repair.bits % 8)],
        // Only where the kernel is built with MPTCP.
        is_mptcp: bytes("tcp_sock", "is_mptcp").unwrap_or(0),
        ulp_ops: bytes("inet_connection_sock", "icsk_ulp_ops")?,
        rmem_alloc: bytes("sock", "sk_backlog.rmem_alloc")?,
        lock_owned: bytes("sock", "sk_lock.owned")?,
        receive_queue_len: bytes("sock", "sk_receive_queue.qlen")?,
        socket: bytes("sock", "sk_socket")?,
        sk: bytes("socket", "sk")?,
        file: bytes("socket", "file")?,
        file_flags: bytes("file", "f_flags")?,
        sock_flags: bytes("sock", "__sk_common.skc_flags")?,
        zerocopy_bit: types.enumerator("sock_flags", "SOCK_ZEROCOPY")?,
        rcvlowat: bytes("sock", "sk_rcvlowat")?,
        rcvbuf: bytes("sock", "sk_rcvbuf")?,
        sndbuf: bytes("sock", "sk_sndbuf")?,
        user_data: bytes("sock", "sk_user_data")?,
        cookie: bytes("sock", "__sk_common.skc_cookie")?,
    })
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("malformed type information: {what}"),
    )
}

fn absent(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("this kernel has no {what}"))
}

fn word(bytes: &[u8], offset: usize) -> io::Result<u32> {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    word.map(|bytes| u32::from_le_bytes(*bytes))
        .ok_or_else(|| malformed("it ends in the middle"))
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bits: u32,
    of_type: u32,
}

impl Place {
    fn in_bytes(self) -> io::Result<u32> {
        if self.bits.is_multiple_of(8) {
            Ok(self.bits / 8)
        } else {
            Err(malformed("a member is not at a byte"))
        }
    }
}

/// A type: three words, and what follows them by its kind.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    info: u32,
    /// Size, or the type that it is made of.
    size_or_type: u32,
}

impl Type {
    const LEN: usize = 12;

    fn read(types: &[u8], at: usize) -> io::Result<Self> {
        Ok(Self {
            at,
            name: word(types, at)?,
            info: word(types, at + 4)?,
            size_or_type: word(types, at + 8)?,
        })
    }

    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn has_bitfields(self) -> bool {
        self.info >> 31 != 0
    }

    fn len(self) -> usize {
        Self::LEN
            + match self.kind() {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.count(),
                kind::ENUM | kind::FUNC_PROTO => 8 * self.count(),
                _ => 0,
            }
    }
}

struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; the first is number 1.
    begins: Vec<u32>,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        if !bytes.starts_with(&MAGIC.to_le_bytes()) {
            return Err(malformed("it does not begin as it should"));
        }
        let section = |offset: usize| {
            let start = word(bytes, 4)?.checked_add(word(bytes, offset)?);
            let range = start
                .and_then(|start| Some(start as usize..start.checked_add(word(bytes, offset + 4).ok()?)? as usize));
            range
                .and_then(|range| bytes.get(range))
                .ok_or_else(|| malformed("a section lies outside"))
        };
        let (types, strings) = (section(8)?, section(16)?);
        let (mut begins, mut at) = (Vec::new(), 0);
        while at < types.len() {
            begins.push(at as u32);
            at += Type::read(types, at)?.len();
        }
        Ok(Self { types, strings, begins })
    }

    fn all(&self) -> impl Iterator<Item = Type> + '_ {
        let read = |begin: &u32| Type::read(self.types, *begin as usize).ok();
        self.begins.iter().filter_map(read)
    }

    fn of_number(&self, number: u32) -> io::Result<Type> {
        let index = (number as usize).checked_sub(1);
        let begin = index.and_then(|index| self.begins.get(index));
        Type::read(
            self.types,
            *begin.ok_or_else(|| malformed("a type is missing"))? as usize,
        )
    }

    fn is_named(&self, name: u32, text: &str) -> bool {
        let string = self.strings.get(name as usize..).unwrap_or_default();
        string
            .strip_prefix(text.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn named(&self, kind: u32, name: &str) -> io::Result<Type> {
        self.all()
            .find(|found| found.kind() == kind && self.is_named(found.name, name))
            .ok_or_else(|| absent(name))
    }

    /// The member of a struct at a path of names with dots between them.
    fn member(&self, structure: &str, path: &str) -> io::Result<Place> {
        let mut inside = self.named(kind::STRUCT, structure)?;
        let mut place = Place { bits: 0, of_type: 0 };
        for (step, name) in path.split('.').enumerate() {
            if step > 0 {
                inside = self.resolve(place.of_type)?;
            }
            let found = self.find(inside, name, 0)?;
            let found = found.ok_or_else(|| absent(&format!("{structure}.{path}")))?;
            place = Place {
                bits: place.bits + found.bits,
                ..found
            };
        }
        Ok(place)
    }

    /// A member by its name, also one of an anonymous struct or union inside.
    fn find(&self, inside: Type, name: &str, depth: u32) -> io::Result<Option<Place>> {
        if !matches!(inside.kind(), kind::STRUCT | kind::UNION) || depth > 8 {
            return Ok(None);
        }
        for number in 0..inside.count() {
            let at = inside.at + Type::LEN + 12 * number;
            let (member, of_type, offset) = (
                word(self.types, at)?,
                word(self.types, at + 4)?,
                word(self.types, at + 8)?,
            );
            let bits = if inside.has_bitfields() {
                offset & 0xff_ffff
            } else {
                offset
            };
            if self.is_named(member, name) {
                return Ok(Some(Place { bits, of_type }));
            }
            if self.is_named(member, "")
                && let Some(found) = self.find(self.resolve(of_type)?, name, depth + 1)?
            {
                return Ok(Some(Place {
                    bits: bits + found.bits,
                    ..found
                }));
            }
        }
        Ok(None)
    }

    /// A type without its other names and qualifiers.
    fn resolve(&self, number: u32) -> io::Result<Type> {
        let mut found = self.of_number(number)?;
        for _ in 0..16 {
            match found.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => {
                    found = self.of_number(found.size_or_type)?;
                }
                _ => return Ok(found),
            }
        }
        Err(malformed("a type has no end"))
    }

    fn enumerator(&self, enumeration: &str, name: &str) -> io::Result<u32> {
        let found = self.named(kind::ENUM, enumeration)?;
        for number in 0..found.count() {
            let at = found.at + Type::LEN + 8 * number;
            if self.is_named(word(self.types, at)?, name) {
                return word(self.types, at + 4);
            }
        }
        Err(absent(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests; clippy knows only the functions marked so")]

    use super::*;

    /// Writes type information, type by type.
    #[derive(Default)]
    struct Writer {
        types: Vec<u32>,
        strings: Vec<u8>,
    }

    impl Writer {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes());
            self.strings.push(0);
            at
        }

        fn add(&mut self, kind: u32, flag: u32, name: &str, size_or_type: u32, members: &[(&str, u32, u32)]) {
            let name = self.name(name);
            self.types
                .extend([name, flag << 31 | kind << 24 | members.len() as u32, size_or_type]);
            for (name, of_type, offset) in members {
                let name = self.name(name);
                self.types.extend([name, *of_type, *offset]);
            }
        }

        fn bytes(self) -> Vec<u8> {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_le_bytes()).collect();
            let header = [
                u32::from(MAGIC) | 1 << 16,
                24,
                0,
                types.len() as u32,
                types.len() as u32,
                self.strings.len() as u32,
            ];
            let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(types);
            bytes.extend(self.strings);
            bytes
        }
    }

    /// 1: int. 2: a union with `x` and `y`. 3: a struct `inner` with an anonymous union. 4: a typedef of it. 5:
    /// `outer`.
    fn sample() -> Vec<u8> {
        let mut writer = Writer::default();
        let name = writer.name("int");
        writer.types.extend([name, kind::INT << 24, 4, 32]);
        writer.add(kind::UNION, 0, "", 4, &[("x", 1, 0), ("y", 1, 0)]);
        writer.add(
            kind::STRUCT,
            0,
            "inner",
            12,
            &[("first", 1, 0), ("", 2, 32), ("last", 1, 64)],
        );
        writer.add(kind::TYPEDEF, 0, "inner_t", 3, &[]);
        writer.add(
            kind::STRUCT,
            1,
            "outer",
            16,
            &[("flag", 1, 1 << 24 | 3), ("embedded", 4, 32), ("firs", 1, 96)],
        );
        writer.bytes()
    }

    #[test]
    fn members_are_found_through_embedded_and_anonymous_structs() {
        let bytes = sample();
        let types = Types::parse(&bytes).unwrap();
        let at = |structure, path| types.member(structure, path).and_then(Place::in_bytes);
        assert_eq!(at("inner", "last").unwrap(), 8);
        assert_eq!(at("inner", "y").unwrap(), 4);
        assert_eq!(at("outer", "embedded.y").unwrap(), 8);
        assert_eq!(at("outer", "embedded.last").unwrap(), 12);
        assert_eq!(at("outer", "firs").unwrap(), 12);
        assert_eq!(types.member("outer", "flag").unwrap().bits, 3);
        assert!(at("outer", "flag").is_err());
        assert!(at("outer", "first").is_err());
        assert!(at("nothing", "first").is_err());
    }

    #[test]
    fn what_is_cut_or_changed_is_an_error_and_no_panic() {
        let bytes = sample();
        for len in 0..bytes.len() {
            let _ = of_kernel(&bytes[..len]);
            let mut changed = bytes.clone();
            changed[len] ^= 0xff;
            if let Ok(types) = Types::parse(&changed) {
                let _ = types.member("outer", "embedded.y");
            }
        }
        assert!(of_kernel(&[]).is_err());
    }

    #[test]
    fn the_running_kernels_offsets_are_plausible() {
        if !std::path::Path::new(KERNEL).exists() {
            return; // Such a kernel has no tier either.
        }
        let offsets = offsets().unwrap();
        assert!(offsets.write_seq > offsets.rmem_alloc, "{offsets:?}");
        assert!(offsets.cookie < offsets.rmem_alloc, "{offsets:?}");
        assert!(offsets.repair[1].is_power_of_two(), "{offsets:?}");
        assert!(offsets.zerocopy_bit < 64, "{offsets:?}");
    }
}
