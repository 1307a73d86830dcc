//! The agent's side of the kernel tier.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use underpass_ebpf_abi::tier::{self as abi, MAX_FLOWS, note};

use super::join::Joining;
use super::memory::{DirectionCells, Mapping};
use super::places::Places;
use super::{Direction, JoinRequest, NotJoined, SelfTest, Ticket, Variant, offsets, self_test};
use crate::bpf::Map;
use crate::bpf::socket_map::{self, MemberProgram};
use crate::capture::{Capture, map_error};
use crate::error::Error;
use crate::links;
use crate::object::Loaded;

/// The program that notices readers by splice(2), and its pin.
const SPLICES: &str = "splices";

/// The kernel tier of a node. Dropping it changes nothing in the kernel: joined flows go on.
#[derive(Debug)]
pub struct Tier {
    sockets: SocketMaps,
    flows: Map,
    mapping: Mapping,
    join: OwnedFd,
    measure: OwnedFd,
    variants: Vec<Variant>,
    blind: Option<Error>,
    places: Mutex<Places>,
}

/// The maps whose members are the sockets of joined flows.
#[derive(Debug)]
pub(super) struct SocketMaps {
    plain: Map,
    verdict: Map,
}

impl SocketMaps {
    /// The maps of an object, whose members will have its programs. Those that they have keep the programs that they
    /// were joined with.
    pub(super) fn new(object: &mut Loaded) -> Result<Self, Error> {
        let open = |name| object.map(name).map_err(map_error("open", name));
        let maps = Self {
            plain: open("SOCKS")?,
            verdict: open("SOCKS_VERDICT")?,
        };
        let (gate, through) = (object.program("gate")?, object.program("through")?);
        let attach = |map, program: &OwnedFd, kind, name| {
            socket_map::attach(map, program.as_fd(), kind).map_err(map_error("attach a program to", name))
        };
        attach(&maps.plain, &gate, MemberProgram::MessageVerdict, "SOCKS")?;
        attach(&maps.verdict, &gate, MemberProgram::MessageVerdict, "SOCKS_VERDICT")?;
        attach(&maps.verdict, &through, MemberProgram::StreamVerdict, "SOCKS_VERDICT")?;
        Ok(maps)
    }

    /// The flows of which any socket is still there.
    fn live(&self) -> io::Result<Vec<Ticket>> {
        let mut keys = socket_map::keys(&self.plain)?;
        keys.extend(socket_map::keys(&self.verdict)?);
        let mut flows: Vec<_> = keys.into_iter().map(abi::flow_of).collect();
        flows.sort_unstable();
        flows.dedup();
        let ticket = |(index, generation)| Ticket { index, generation };
        Ok(flows.into_iter().map(ticket).collect())
    }

    pub(super) fn insert(&self, is_in_verdict: bool, key: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
        let map = if is_in_verdict { &self.verdict } else { &self.plain };
        map.update(&key.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// Its queue is lost: only of a socket to which nothing was redirected.
    pub(super) fn remove(&self, key: u64) {
        // It is in at most one of them, and may have closed.
        for map in [&self.plain, &self.verdict] {
            let _ = map.delete(&key.to_ne_bytes());
        }
    }
}

impl Tier {
    /// Makes the tier of a capture ready, or adopts it with the flows that an earlier agent joined.
    ///
    /// # Errors
    /// When the tier cannot work here; the error says why.
    pub fn start(capture: &Capture) -> Result<Self, Error> {
        offsets().map_err(off)?;
        let variants = fit_variants().map_err(off)?;
        Self::of_variants(capture, variants)
    }

    /// The same with one variant, whatever becomes of applications on a kernel where it does not behave: for tests.
    ///
    /// # Errors
    /// When the kernel does not take the programs, or not the way in which their maps are used.
    pub fn start_untested(capture: &Capture, variant: Variant) -> Result<Self, Error> {
        offsets().map_err(off)?;
        Self::of_variants(capture, vec![variant])
    }

    fn of_variants(capture: &Capture, variants: Vec<Variant>) -> Result<Self, Error> {
        let mut object = capture.programs().of_node()?;
        let blind = notice_splicing(&mut object, &capture.pins.link(SPLICES)).err();
        let sockets = SocketMaps::new(&mut object)?;
        let flows = object.map("FLOWS").map_err(map_error("open", "FLOWS"))?;
        let live = sockets.live().map_err(map_error("read", "SOCKS"))?;
        Ok(Self {
            mapping: Mapping::new(flows.as_fd()).map_err(map_error("map", "FLOWS"))?,
            flows,
            join: object.program("join")?,
            measure: object.program("measure")?,
            places: Mutex::new(Places::new(live, RandomState::new().build_hasher().finish() as u32)),
            sockets,
            variants,
            blind,
        })
    }

    /// Why readers by splice(2) are not noticed on this node, if they are not: tracing programs may be forbidden. Such a reader would wait for what it
    /// does not see, so it has to be kept out by hand.
    pub fn is_blind_to_splicing(&self) -> Option<&Error> {
        self.blind.as_ref()
    }

    /// How receivers are joined where a request does not say.
    pub fn variant(&self) -> Variant {
        self.variants[0]
    }

    /// The variants that work on this kernel, in the order of preference.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The map `FLOWS`, for proxies.
    pub fn flows_fd(&self) -> BorrowedFd<'_> {
        self.flows.as_fd()
    }

    /// The program `measure`, for proxies.
    pub fn measure_fd(&self) -> BorrowedFd<'_> {
        self.measure.as_fd()
    }

    /// Joins a flow. Its directions are unarmed. The calling thread visits other network namespaces meanwhile, and
    /// comes back.
    ///
    /// # Errors
    /// When one of the sockets is not fit, or the kernel does not take it. Nothing has changed then.
    ///
    /// # Panics
    /// When the thread cannot come back.
    pub fn join(&self, request: &JoinRequest<'_>) -> Result<Ticket, NotJoined> {
        let variant = request.variant.unwrap_or(self.variant());
        if !self.variants.contains(&variant) {
            return Err(NotJoined::Variant(variant));
        }
        let ticket = self.take_place().ok_or(NotJoined::Full)?;
        for direction in Direction::ALL {
            begin(
                self.mapping.direction(ticket.index, direction.index()),
                ticket.generation,
            );
        }
        let joined = Joining::new(self.join.as_fd(), request, ticket, variant)
            .and_then(|joining| joining.run(|key| self.sockets.remove(key)));
        match joined {
            Ok(rooms) => {
                for (direction, room) in Direction::ALL.into_iter().zip(rooms) {
                    let cells = self.mapping.direction(ticket.index, direction.index());
                    cells.room.store(room, SeqCst);
                }
                Ok(ticket)
            }
            Err(refusal) => {
                self.leave(ticket);
                Err(refusal)
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing in it is ever half-done.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_place(&self) -> Option<Ticket> {
        let mut places = self.places();
        places.take().or_else(|| {
            // Flows that an earlier agent joined for a proxy that never came back have ended by now.
            places.reclaim(&self.sockets.live().ok()?);
            places.take()
        })
    }

    /// The flow has ended, or is nobody's any more: its place may be used again.
    pub fn leave(&self, ticket: Ticket) {
        self.places().give_back(ticket);
    }
}

fn off(reason: impl Into<String>) -> Error {
    Error::TierOff { reason: reason.into() }
}

/// Attaches the program that notices readers by splice(2).
fn notice_splicing(object: &mut Loaded, pin: &Path) -> Result<(), Error> {
    let program = object.program(SPLICES)?;
    links::attach_to_function(program.as_fd(), "tcp_splice_read", pin)
}

/// The variants that the self-test, made once by this process, found to behave; or what it found instead.
fn fit_variants() -> Result<Vec<Variant>, String> {
    if cfg!(feature = "mutants") {
        // It would find them out before the tests do.
        return Ok(Variant::ALL.into());
    }
    static TEST: OnceLock<SelfTest> = OnceLock::new();
    let test = TEST.get_or_init(self_test);
    let variants: Vec<_> = Variant::ALL
        .into_iter()
        .filter(|variant| test.is_fit(*variant))
        .collect();
    if variants.is_empty() {
        return Err(test.summary());
    }
    Ok(variants)
}

/// Makes a place the next flow's. Until its generation is stored, what is left of the last flow finds its own.
pub(super) fn begin(cells: &DirectionCells, generation: u32) {
    cells.armed.store(0, SeqCst);
    cells.generation.store(0, SeqCst);
    for count in [
        &cells.forwarded,
        &cells.bypassed_bytes,
        &cells.bypassed_messages,
        &cells.behind,
        &cells.full,
        &cells.busy,
    ] {
        count.store(0, Relaxed);
    }
    for number in [
        &cells.queued,
        &cells.notes,
        &cells.waiting,
        &cells.hop_waiting,
        &cells.sender_core,
        &cells.relay_core,
        &cells.room,
    ] {
        number.store(0, Relaxed);
    }
    cells.generation.store(generation, SeqCst);
}

/// Ends the bypass of all flows of a capture that is being removed: nothing would notice when their proxy dies.
pub(crate) fn end_all(flows: BorrowedFd<'_>) -> io::Result<()> {
    let mapping = Mapping::new(flows)?;
    for flow in 0..MAX_FLOWS {
        for direction in Direction::ALL {
            let cells = mapping.direction(flow, direction.index());
            if cells.generation.load(SeqCst) != 0 {
                cells.notes.fetch_or(note::DETACHED, SeqCst);
                cells.armed.store(0, SeqCst);
            }
        }
    }
    Ok(())
}
