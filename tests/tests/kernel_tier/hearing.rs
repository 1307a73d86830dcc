//! A reset that comes while its receiver reads: the kernel keeps what comes then only up to a bound, and a reset comes once.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use underpass_tests::wait;

use crate::absent_page::{AbsentPage, PAGE};
use crate::pair::Waiting;
use crate::place::{IMPATIENT, PORT, Place};

/// More than what a receiver with [`BUFFERS`] hears anything beside: 2 x 128 KiB, 8 KiB and 64 KiB (tcp_add_backlog; the kernel doubles what
/// it is asked for).
const LONG: usize = 480 * 1024;
/// To receive, and to send.
const BUFFERS: (usize, usize) = (64 * 1024, 8 * 1024);
/// Whoever resets a connection without waiting for its reader, has done so by then.
const RESETS_WITHIN: Duration = Duration::from_millis(300);

#[test]
fn a_reader_at_work_on_a_long_queue_hears_that_policy_cuts_its_connection() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    let pair = place.open(&listener);
    let server = SockRef::from(&pair.server);
    server.set_recv_buffer_size(BUFFERS.0).expect("SO_RCVBUF");
    server.set_send_buffer_size(BUFFERS.1).expect("SO_SNDBUF");
    place.settle_in_the_kernel(&pair);
    let before = place.view(&pair).tiers().sent.kernel;
    let written = (&pair.client).write(&[5; LONG]).expect("there is room");
    let passed = place.view(&pair).tiers().sent.kernel - before;
    assert!(passed >= 400_000, "{written} written, {passed} in the kernel");
    let source = pair.source();
    let page = AbsentPage::new();
    thread::scope(|scope| {
        let reading = scope.spawn(|| page.read(&pair.server));
        wait::eventually(wait::SOON, "the reader waits for its page", || page.is_waited_for());
        let port = format!("[{{rules: [{{matches: [{{destination_ports: [{PORT}]}}]}}]}}]");
        let doom = format!("scope: GLOBAL, action: DENY, groups: {port}");
        place.proxy.apply(&place.config(IMPATIENT).policy("shop/doom", doom));
        thread::sleep(RESETS_WITHIN);
        page.give();
        assert_eq!(reading.join().expect("a reader"), [5; PAGE]);
    });
    let mut server = Waiting(pair.server);
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        match server.read(&mut buffer) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error.kind()),
        }
    };
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    assert_eq!(place.proxy.access_line(source).field("reason"), "policy_revoked");
}
