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
/// `BPF_FUNC_probe_read_kernel`, by which the sequence number and the receiver's queue are read.
const PROBE_READ_KERNEL: i32 = 113;
/// `BPF_FUNC_msg_redirect_hash`.
const REDIRECT: i32 = 71;

fn gate() -> Vec<Instruction> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/underpass.bpf.o");
    let path = std::env::var("UNDERPASS_EBPF_OBJECT").unwrap_or_else(|_| built.to_owned());
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("gate")).unwrap();
    let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
    let code = &section.data().unwrap()[symbol.address() as usize..][..symbol.size() as usize];
    let instruction = |bytes: &[u8; 8]| Instruction {
        code: bytes[0],
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    code.as_chunks().0.iter().map(instruction).collect()
}

#[test]
fn the_gate_loads_the_proxys_counter_with_a_barrier_before_it_reads_anything_else() {
    let gate = gate();
    let places = |wanted: &dyn Fn(&Instruction) -> bool| -> Vec<usize> {
        let all = gate.iter().enumerate();
        all.filter(|(_, instruction)| wanted(instruction))
            .map(|(place, _)| place)
            .collect()
    };
    // `forwarded` is the first word of the entry.
    let fetches = places(&|it| it.code == ATOMIC_64 && it.immediate == FETCH_ADD && it.offset == 0);
    let reads = places(&|it| it.code == CALL && it.immediate == PROBE_READ_KERNEL);
    let redirects = places(&|it| it.code == CALL && it.immediate == REDIRECT);
    assert_eq!(fetches.len(), 1, "one fetch of the counter, at {fetches:?}");
    assert_eq!(
        reads.len(),
        3,
        "the sender's sequence number, the receiver's cookie and its queue"
    );
    assert!(fetches[0] < reads[0], "{fetches:?} {reads:?}");
    assert!(
        redirects.iter().any(|redirect| *redirect > reads[2]),
        "{redirects:?} {reads:?}"
    );
}
