//! A connect4 program of somebody else, which rewrites one destination to another: what a service load balancer on cgroups does.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::raw;

/// As Cilium's are named.
const NAME: &str = "cil_sock4_conn";

/// Attached until it is killed.
pub(crate) fn run(cgroup: &Path, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let _attached = raw::attach_connect4(File::open(cgroup)?, NAME, &program(from, to))?;
    println!("attached");
    loop {
        std::thread::park();
    }
}

/// Offsets in `struct bpf_sock_addr` (include/uapi/linux/bpf.h).
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// `if (ctx->user_ip4 == FROM && ctx->user_port == PORT) { ctx->user_ip4 = TO; ctx->user_port = PORT; } return 1;`
fn program(from: SocketAddr, to: SocketAddr) -> Vec<u64> {
    let ((from_ip, from_port), (to_ip, to_port)) = (words(from), words(to));
    vec![
        load_word(USER_IP4),
        // Register 3: a 32-bit constant would be sign-extended by a 64-bit comparison.
        move_word(3, from_ip),
        jump_if_not_equal_registers(2, 3, 7),
        load_word(USER_PORT),
        move_word(3, from_port),
        jump_if_not_equal_registers(2, 3, 4),
        move_word(2, to_ip),
        store_word(USER_IP4),
        move_word(2, to_port),
        store_word(USER_PORT),
        move_word(0, 1),
        exit(),
    ]
}

/// Address and port as the context has them: network byte order.
fn words(address: SocketAddr) -> (u32, u32) {
    match address {
        SocketAddr::V4(v4) => (u32::from_ne_bytes(v4.ip().octets()), u32::from(v4.port().to_be())),
        SocketAddr::V6(_) => panic!("connect4 is of IPv4"),
    }
}

/// `struct bpf_insn`: code, registers (destination in the low half), offset, immediate.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[0] = code;
    bytes[1] = destination | source << 4;
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// r2 = *(u32 *)(r1 + offset)
fn load_word(offset: i16) -> u64 {
    instruction(0x61, 2, 1, offset, 0)
}

/// *(u32 *)(r1 + offset) = r2
fn store_word(offset: i16) -> u64 {
    instruction(0x63, 1, 2, offset, 0)
}

/// wREGISTER = value
fn move_word(register: u8, value: u32) -> u64 {
    instruction(0xb4, register, 0, 0, value)
}

fn jump_if_not_equal_registers(one: u8, other: u8, offset: i16) -> u64 {
    instruction(0x5d, one, other, offset, 0)
}

fn exit() -> u64 {
    instruction(0x95, 0, 0, 0, 0)
}
