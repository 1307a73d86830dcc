//! Maps with types: what goes through bpf(2) as bytes is here a key and a value.

use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd};

use underpass_ebpf_abi::tier::{FlowId, JoinCall, Offsets, Way};
use underpass_ebpf_abi::{HandshakeKey, Note, PodEntry, Slot};

use crate::bpf::Map;

/// A value that crosses the system call boundary as its bytes.
///
/// # Safety
/// The type has no padding, and every bit pattern of its size is a value of it.
#[allow(unsafe_code)]
pub(crate) unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),+) => {
        $(
            // SAFETY: numbers only, and no padding (the layouts are pinned by the tests of `underpass-ebpf-abi`).
            #[allow(unsafe_code)]
            unsafe impl Plain for $type {}
        )+
    };
}

plain!(
    u32,
    i32,
    u64,
    [u8; 16],
    PodEntry,
    Slot,
    HandshakeKey,
    Note,
    Way,
    FlowId,
    JoinCall,
    Offsets
);

#[allow(unsafe_code)]
pub(crate) fn bytes_of_slice<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` promises that there is no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    bytes_of_slice(std::slice::from_ref(value))
}

/// Lets `fill` write the bytes of a value; `None` when it says false.
#[allow(unsafe_code)]
fn filled<T: Plain>(fill: impl FnOnce(&mut [u8]) -> io::Result<bool>) -> io::Result<Option<T>> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the bytes are initialised, to zero.
    let there = fill(unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast(), size_of::<T>()) })?;
    // SAFETY: `Plain` promises that any bytes are a value.
    Ok(there.then(|| unsafe { value.assume_init() }))
}

/// `None` when there are not as many bytes as the type has.
#[allow(unsafe_code)]
pub(crate) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is that of the type; `Plain` promises that any bytes are a value.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A map from `K` to `V`.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    map: Map,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// The sizes of the types are checked against the map's at each call.
    pub(crate) fn new(map: Map) -> Self {
        Self {
            map,
            types: PhantomData,
        }
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        filled(|value| self.map.lookup(bytes(key), value))
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.update(bytes(key), bytes(value))
    }

    /// False if there was none.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        self.map.delete(bytes(key))
    }

    /// All entries of a hash map. Those that come or go meanwhile may be among them or not.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.map.for_each(|key, value| {
            entries.extend(from_bytes(key).zip(from_bytes(value)));
        })?;
        Ok(entries)
    }

    /// All keys of a hash map.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        Ok(self.entries()?.into_iter().map(|(key, _)| key).collect())
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
