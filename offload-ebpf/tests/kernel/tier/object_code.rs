//! The order of the gate's reads, as the compiler has left it. No run on x86 would show it wrong: that processor keeps
//! reads in order.

use object::{Object, ObjectSection, ObjectSymbol};

/// A BPF instruction (linux/bpf.h): code, registers, offset, immediate.
struct Instruction {
    code: u8,
    offset: i16,
    immediate: i32,
}

/// `BPF_STX | BPF_ATOMIC | BPF_DW`.
const ATOMIC_64: u8 = 0xdb;
/// `BPF_ADD | BPF_FETCH`.
const FETCH_ADD: i32 = 0x01;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_FUNC_probe_read_kernel`, by which the kernel's structs are read.
const PROBE_READ_KERNEL: i32 = 113;
/// `BPF_FUNC_loop`.
const LOOP: i32 = 181;
/// `BPF_FUNC_msg_redirect_hash`.
const REDIRECT: i32 = 71;

/// The code of a function of the programs.
fn code_of(name: &str) -> Vec<Instruction> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/underpass.bpf.o");
    let path = std::env::var("UNDERPASS_EBPF_OBJECT").unwrap_or_else(|_| built.to_owned());
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name().is_ok_and(|it| it.contains(name)))
        .unwrap();
    let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
    let code = &section.data().unwrap()[symbol.address() as usize..][..symbol.size() as usize];
    let instruction = |bytes: &[u8; 8]| Instruction {
        code: bytes[0],
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    code.as_chunks().0.iter().map(instruction).collect()
}

fn places(code: &[Instruction], wanted: impl Fn(&Instruction) -> bool) -> Vec<usize> {
    let all = code.iter().enumerate();
    all.filter(|(_, instruction)| wanted(instruction))
        .map(|(place, _)| place)
        .collect()
}

#[test]
fn each_look_loads_the_proxys_counter_with_a_barrier_before_it_reads_how_much_was_sent() {
    let look = code_of("look_behind");
    // `forwarded` is the first word of the entry.
    let fetches = places(&look, |it| {
        it.code == ATOMIC_64 && it.immediate == FETCH_ADD && it.offset == 0
    });
    let reads = places(&look, |it| it.code == CALL && it.immediate == PROBE_READ_KERNEL);
    assert_eq!(fetches.len(), 1, "one fetch of the counter, at {fetches:?}");
    assert_eq!(reads.len(), 1, "the sender's sequence number");
    assert!(fetches[0] < reads[0], "{fetches:?} {reads:?}");
}

#[test]
fn the_gate_looks_before_it_redirects() {
    let gate = code_of("gate");
    let loops = places(&gate, |it| it.code == CALL && it.immediate == LOOP);
    let redirects = places(&gate, |it| it.code == CALL && it.immediate == REDIRECT);
    // For the proxy's counter, and for the receiver's lock.
    assert!(loops.len() >= 2, "{loops:?}");
    assert!(
        redirects.iter().all(|redirect| *redirect > loops[1]),
        "{redirects:?} {loops:?}"
    );
}
