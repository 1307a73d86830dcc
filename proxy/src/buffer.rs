//! Relay buffers, pooled per core.
//!
//! A direction of a connection holds a buffer only between a read and the write that empties it. With the pool a busy
//! core works out of one or two warm buffers whatever the number of its connections, and idle connections hold none.

use std::cell::RefCell;

/// Bytes moved by one read and one write: enough that a saturated stream spends its time copying rather than entering the
/// kernel (`make bench SCENARIO=l4-stream`), and the most that a direction whose receiver doesn't read holds.
pub const BUFFER_SIZE: usize = 64 * 1024;

/// Buffers kept for reuse on one core; more than this are given back to the allocator.
const POOLED: usize = 8;

/// A relay buffer of `BUFFER_SIZE` bytes.
pub type Buffer = Box<[u8]>;

thread_local! {
    static POOL: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// A buffer whose content is whatever its last user left.
pub fn take() -> Buffer {
    POOL.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice())
}

/// Returns a buffer to this core's pool. One of another size is freed.
pub fn give_back(buffer: Buffer) {
    POOL.with_borrow_mut(|pool| {
        if pool.len() < POOLED && buffer.len() == BUFFER_SIZE {
            pool.push(buffer);
        }
    });
}
