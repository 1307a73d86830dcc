//! BPF_PROG_TEST_RUN: programs that are run when they are asked to, on a packet that carries the question and brings
//! back the answer.
//!
//! The kernel asks for no capability to run a program of which one has the descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use underpass_ebpf_abi::tier::CALL_OFFSET;

use super::bpf;
use crate::table::{Plain, bytes_of_slice};

const PROG_TEST_RUN: i32 = 10;

/// The beginning of the part of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Longest packet: a page less what the kernel wants for itself.
const CAPACITY: usize = 1024;

/// Runs `program` on a packet that contains `question`, in the network namespace of the thread.
pub(crate) fn ask<T: Plain>(program: BorrowedFd<'_>, question: &[T]) -> io::Result<()> {
    run(program, bytes_of_slice(question), &mut []).map(drop)
}

/// The same, and has `call` be what the program has made of it.
pub(crate) fn call<T: Plain>(program: BorrowedFd<'_>, call: &mut T) -> io::Result<()> {
    let mut answer = vec![0; CALL_OFFSET as usize + size_of::<T>()];
    run(program, bytes_of_slice(std::slice::from_ref(call)), &mut answer)?;
    *call = crate::table::from_bytes(&answer[CALL_OFFSET as usize..]).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(())
}

#[allow(unsafe_code)]
fn run(program: BorrowedFd<'_>, question: &[u8], answer: &mut [u8]) -> io::Result<i32> {
    let mut packet = [0u8; CAPACITY];
    let start = CALL_OFFSET as usize;
    let end = start + question.len();
    let place = packet.get_mut(start..end).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(question);
    let mut attribute = TestRun {
        program: program.as_raw_fd() as u32,
        result: 0,
        size_in: end as u32,
        size_out: answer.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: if answer.is_empty() {
            0
        } else {
            answer.as_mut_ptr() as u64
        },
        repeat: 0,
        duration: 0,
    };
    // SAFETY: the kernel reads `size_in` bytes and writes at most `size_out`.
    unsafe { bpf(PROG_TEST_RUN, &mut attribute) }
}
