//! A receiver on whose socket a system call is at work, and stays at work: it faults on the page that it reads into.
//!
//! The kernel brings redirected bytes under the receiver's lock, in the sender's send. A page that does not come
//! (userfaultfd(2) stands for a slow disk) would stop the sender for as long.

use std::sync::mpsc;

use underpass_ebpf::tier::Direction::Out;

use super::absent_page::AbsentPage;
use super::world::{Flow, World, read, write};
use crate::needs_root;
use crate::wait::{eventually, soon};

#[test]
fn a_receiver_that_is_stuck_in_its_read_does_not_stop_its_sender() {
    needs_root!();
    let Some(world) = World::new() else { return };
    let flow = world.flow();
    let joined = world.joined(&flow);
    write(&flow.a, b"first");
    let page = AbsentPage::new();
    let Flow { a, b, .. } = &flow;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| page.read(b));
        eventually("the reader waits for its page", || page.is_waited_for());
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || {
            write(a, b"second");
            let _ = done.send(());
        });
        let was_stopped = is_done.recv_timeout(soon()).is_err();
        // The proxy would sleep too: there is no room, as long as the lock is held.
        let measured = if was_stopped {
            0
        } else {
            world.memory.measure(&[joined.ticket()]).unwrap();
            joined.queued(Out)
        };
        page.give();
        assert_eq!(reading.join().unwrap(), b"first");
        assert!(!was_stopped, "the sender waited for the receiver's lock");
        assert_eq!(measured, u32::MAX);
    });
    assert_eq!(joined.tally(Out).busy, 1);
    assert_eq!(read(&flow.pa, 6), b"second");
    write(&flow.h, b"second");
    joined.handed_on(Out, 6);
    write(&flow.a, b"third");
    assert_eq!(read(&flow.b, 11), b"secondthird");
    assert_eq!(joined.tally(Out).bypassed_messages, 2);
}
