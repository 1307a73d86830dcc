//! The proxy dies: its flows are reset, and of what the gate let through before nothing is read after that.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use underpass_ebpf::tier::Direction::{In, Out};
use underpass_ebpf::tier::{JoinedFlow, Variant, note};

use super::absent_page::AbsentPage;
use super::world::{Flow, World, drain, read_to_end, write};
use crate::site::skip;
use crate::wait::{eventually, soon};

/// As the proxy does for joined flows, so that its death is no orderly end.
fn reset_on_close(sockets: [&TcpStream; 2]) {
    for socket in sockets {
        socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A process that does nothing but hold the proxy's sockets.
struct Holder(std::process::Child);

impl Holder {
    fn of(pa: TcpStream, h: TcpStream) -> Self {
        let fds: [OwnedFd; 2] = [pa.into(), h.into()];
        let numbers = fds.each_ref().map(AsRawFd::as_raw_fd);
        let mut command = Command::new("sleep");
        command.arg("60");
        // SAFETY: dup2 is safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (number, place) in numbers.into_iter().zip([100, 101]) {
                    if libc::dup2(number, place) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn after_the_proxy_is_killed_not_one_byte_comes_after_the_end() {
    let Some(world) = World::new() else { return };
    for _ in 0..100 {
        let flow = world.flow();
        // Nobody drops it: a killed process does not.
        let joined = world.joined(&flow);
        let Flow { a, pa, h, b } = flow;
        reset_on_close([&pa, &h]);
        let holder = Holder::of(pa, h);
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut sent = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    // There is nobody to relay what finds no room.
                    if sent > received.load(Ordering::Relaxed) + 50_000 {
                        thread::yield_now();
                        continue;
                    }
                    match (&a).write(&[1; 1000]) {
                        Ok(len) => sent += len as u64,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
                sent
            });
            let reader = scope.spawn(|| {
                let end = drain(&b, |bytes| {
                    received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                });
                assert_eq!(end, Some(ErrorKind::ConnectionReset));
                // The writer still writes.
                let mut more = 0;
                for _ in 0..50 {
                    more += read_to_end(&b).0.len();
                    thread::sleep(Duration::from_micros(100));
                }
                assert_eq!(more, 0, "bytes after the end");
            });
            eventually("bytes pass by", || received.load(Ordering::Relaxed) > 10_000);
            holder.kill();
            reader.join().unwrap();
            stop.store(true, Ordering::Relaxed);
            let sent = writer.join().unwrap();
            assert!(received.load(Ordering::Relaxed) <= sent + 1000);
            assert_ne!(joined.tally(Out).notes & note::HOP_ENDED, 0);
        });
    }
}

/// How often a message is caught on its way.
const CATCHES: usize = 20;
/// What the receiver's reader lets pass at most between the arrival of a message and its read, so that the next one's sender is past the gate.
const PAUSE: Duration = Duration::from_micros(4);
/// A hop waits for a sender for so long at most, and after such a wait in vain not so long for a second (`patience::until_left` of the programs).
const LONGEST: Duration = Duration::from_millis(50);
const NO_LONGER: Duration = Duration::from_secs(1);
/// The hop's end has been noted for so long: either its reset has left, or it waits for the sender.
const NOTED: Duration = Duration::from_millis(5);

/// Two cores: one for those at the receiver, one for those who have to be somewhere else.
fn two_cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let cores = cores.next().zip(cores.next());
    if cores.is_none() {
        skip("there is one core only");
    }
    cores.map(|(one, other)| [one, other])
}

/// Has a thread, or this one, run on `core` only.
fn pin(thread: Option<Pid>, core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(thread, &cores).unwrap();
}

/// Has this thread run on `core`, before whatever else this machine has to do: what is to be seen here depends on the order of a few only.
fn run_first(core: usize, priority: i32) {
    pin(None, core);
    let wanted = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: reads the struct. Where it is not allowed a busy machine may make the test fail, nothing else.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &wanted) };
}

/// Whether a thread of ours sleeps in the kernel where no signal wakes it up, as `lock_sock` does.
fn sleeps_for_a_lock(thread: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", thread.as_raw_nonzero())).unwrap();
    // The state follows the name, which ends with the last parenthesis.
    stat.rsplit_once(')').unwrap().1.starts_with(" D")
}

/// Waits for a moment that is too short to sleep.
fn spin_for(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// What both ends of a flow tell each other.
#[derive(Default)]
struct Progress {
    /// Thread of the sender.
    sender: AtomicUsize,
    /// Its messages are sent.
    is_sent: AtomicBool,
    /// The hop is closed.
    is_closed: AtomicBool,
    /// The receiver has seen the end.
    has_ended: AtomicBool,
    /// Who gives the page is on the core where it can.
    is_page_at_hand: AtomicBool,
}

impl Progress {
    fn sender(&self) -> Pid {
        eventually("the sender has begun", || self.sender.load(Ordering::SeqCst) != 0);
        Pid::from_raw(self.sender.load(Ordering::SeqCst) as i32).unwrap()
    }

    fn is_sent(&self) -> bool {
        self.is_sent.load(Ordering::SeqCst)
    }

    /// Two messages, of which the second may be caught.
    fn send(&self, to: &TcpStream) {
        self.sender
            .store(gettid().as_raw_nonzero().get() as usize, Ordering::SeqCst);
        write(to, &[1; 1000]);
        let _ = { to }.write(&[2; 1000]);
        self.is_sent.store(true, Ordering::SeqCst);
    }

    /// Reads to the end and, while the sender is at it, on: says how many bytes came after the end.
    fn read_after_end(&self, mut from: &TcpStream) -> usize {
        let mut late = 0;
        let deadline = Instant::now() + soon();
        loop {
            let (was_sent, has_ended) = (self.is_sent(), self.has_ended.load(Ordering::SeqCst));
            match from.read(&mut [0; 4096]) {
                Ok(0) => self.has_ended.store(true, Ordering::SeqCst),
                Ok(len) if has_ended => late += len,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    self.has_ended.store(true, Ordering::SeqCst);
                }
            }
            if has_ended && was_sent {
                return late;
            }
            assert!(Instant::now() < deadline, "no end");
            // The sender may be on this core.
            thread::yield_now();
        }
    }

    /// Keeps the sender, which is on this core, from going on until the receiver has seen the end.
    fn keep_sender_until_end(&self) {
        let end = Instant::now() + 4 * NOTED;
        while !self.is_sent() && !self.has_ended.load(Ordering::SeqCst) && Instant::now() < end {
            std::hint::spin_loop();
        }
    }

    /// Gives the reader its page, so that the receiver's lock is given back: before the hop's reset has left, if that waits.
    fn let_read_on(&self, joined: &JoinedFlow, page: &AbsentPage, [at_receiver, elsewhere]: [usize; 2]) {
        self.is_page_at_hand.store(true, Ordering::SeqCst);
        let has_ended = |direction| joined.tally(direction).notes & note::HOP_ENDED != 0;
        eventually("a hop's end is noted", || has_ended(Out) || has_ended(In));
        let end = Instant::now() + NOTED;
        while !self.is_closed.load(Ordering::SeqCst) && Instant::now() < end {
            thread::sleep(Duration::from_micros(200));
        }
        // The core of who closes the hop is taken until that is done. Then it is the one on which the sender is not in the reader's way.
        let is_closed = self.is_closed.load(Ordering::SeqCst);
        pin(Some(self.sender()), if is_closed { elsewhere } else { at_receiver });
        page.give();
    }
}

/// Tries to catch a sender between the gate and the receiver's queue, asleep for the receiver's lock, and closes the hop then, after the one to the
/// sender if that `is_sender_first`: how many bytes are read after the end; `None` if the sender was not caught.
fn bytes_after_end(
    world: &World,
    variant: Variant,
    cores: [usize; 2],
    is_sender_first: bool,
    pause: Duration,
) -> Option<usize> {
    let flow = world.flow();
    let joined = world.joined_as(&flow, variant);
    let Flow { a, pa, h, b } = flow;
    reset_on_close([&pa, &h]);
    let [at_receiver, elsewhere] = cores;
    let (page, progress) = (AbsentPage::new(), Progress::default());
    run_first(elsewhere, 2);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            run_first(at_receiver, 1);
            let deadline = Instant::now() + soon();
            while !has_something(&b) && Instant::now() < deadline {
                thread::yield_now();
            }
            spin_for(pause);
            // Nobody gives the receiver's lock back until the page is there.
            let first = page.read(&b);
            let late = progress.read_after_end(&b);
            assert_eq!(first[..1000], [1; 1000]);
            late
        });
        scope.spawn(|| {
            run_first(elsewhere, 1);
            progress.send(&a);
        });
        let sender = progress.sender();
        eventually("the reader waits for its page", || page.is_waited_for());
        eventually("the sender is through, or sleeps", || {
            progress.is_sent() || sleeps_for_a_lock(sender)
        });
        let is_caught = !progress.is_sent();
        if is_caught {
            scope.spawn(|| {
                run_first(at_receiver, 2);
                progress.let_read_on(&joined, &page, cores);
            });
            eventually("somebody is there to give the page", || {
                progress.is_page_at_hand.load(Ordering::SeqCst)
            });
        } else {
            // Or the hop would wait for the reader in vain, and not for the next sender.
            page.give();
        }
        let before = Instant::now();
        if is_sender_first {
            abort(&pa);
        }
        abort(&h);
        let was_in_vain = before.elapsed() >= LONGEST;
        progress.is_closed.store(true, Ordering::SeqCst);
        progress.keep_sender_until_end();
        let late = reader.join().unwrap();
        if was_in_vain {
            // Other tests at work had the cores.
            thread::sleep(NO_LONGER);
        }
        (is_caught && !was_in_vain).then_some(late)
    })
}

/// Does what close(2) does with a zero linger time (`tcp_disconnect`), also when another test has just forked, whose child has the socket too.
fn abort(socket: &TcpStream) {
    // SAFETY: numbers only, of which zero is `AF_UNSPEC`.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: an address of the length that is said.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), &nowhere, size_of_val(&nowhere) as u32) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Whether there is something to be read, or an end.
fn has_something(socket: &TcpStream) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

/// The kernel lets go of the sender's lock before it sleeps for the receiver's: so nothing but the hop itself can keep its end from being first.
#[test]
fn a_message_that_waits_for_its_receivers_lock_when_the_proxy_dies_does_not_come_after_the_end() {
    let Some(world) = World::new() else { return };
    let Some(cores) = two_cores() else { return };
    for variant in world.tier.variants() {
        let mut pauses = (0..).map(|step: u32| PAUSE * (step % 40) / 40);
        let (mut caught, mut late) = (0, 0);
        let deadline = Instant::now() + 6 * soon();
        while caught < CATCHES {
            assert!(Instant::now() < deadline, "{variant:?}: only {caught} caught");
            let pause = pauses.next().unwrap();
            if let Some(bytes) = bytes_after_end(&world, *variant, cores, caught % 2 == 1, pause) {
                caught += 1;
                late += usize::from(bytes > 0);
            }
        }
        assert_eq!(
            late, 0,
            "{variant:?}: of {caught} messages on their way came after the end"
        );
    }
}

/// Receivers that are stuck in their reads at once.
const STUCK: usize = 20;

#[test]
fn receivers_that_are_stuck_in_their_reads_hold_the_death_of_a_proxy_up_once() {
    let Some(world) = World::new() else { return };
    let mut hops = Vec::new();
    let ends: Vec<_> = (0..STUCK)
        .map(|_| {
            let flow = world.flow();
            let joined = world.joined(&flow);
            write(&flow.a, b"stuck");
            let Flow { a, pa, h, b } = flow;
            reset_on_close([&pa, &h]);
            hops.push(h);
            (b, AbsentPage::new(), (joined, a, pa))
        })
        .collect();
    let took = thread::scope(|scope| {
        for (b, page, _) in &ends {
            scope.spawn(|| assert_eq!(page.read(b), b"stuck"));
        }
        for (_, page, _) in &ends {
            eventually("the reader waits for its page", || page.is_waited_for());
        }
        let before = Instant::now();
        drop(hops);
        let took = before.elapsed();
        ends.iter().for_each(|(_, page, _)| page.give());
        took
    });
    assert!(took < LONGEST * STUCK as u32 / 2, "{took:?}");
}
