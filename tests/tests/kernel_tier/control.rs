//! Who may be in the kernel, live: policy and settings take connections out of it, what keeps them out is said, and time-outs see what
//! goes past the proxy.

use std::io::Write;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use underpass_tests::wait;

use crate::place::{IMPATIENT, PORT, Place};

/// Issue 5: a connection that a change of policy denies is reset at both ends within this.
const REVOKED_WITHIN: Duration = Duration::from_millis(100);
const DENY_ALL: &str = "scope: GLOBAL, action: DENY, groups: [{rules: [{matches: [{}]}]}]";
/// Without anything said for so long a connection ends.
const IDLE: Duration = Duration::from_secs(1);

#[test]
fn a_policy_that_denies_a_connection_in_the_kernel_resets_both_ends_in_time() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    for round in 0..5 {
        let pair = place.open(&listener);
        place.settle_in_the_kernel(&pair);
        let stuck = round % 2 == 1;
        if stuck {
            // Nobody reads: what waits in the kernel must not keep it from ending.
            while (&pair.client).write(&[0; 10_000]).is_ok() {}
        }
        let (applied, resets) = thread::scope(|scope| {
            let watching = scope.spawn(|| [&pair.client, &pair.server].map(reset_at));
            place
                .proxy
                .apply(&place.config(IMPATIENT).policy("mesh/deny", DENY_ALL));
            (Instant::now(), watching.join().expect("the watch"))
        });
        for (side, reset) in ["client", "server"].into_iter().zip(resets) {
            let reset = reset.unwrap_or_else(|| panic!("the {side} is not reset (stuck: {stuck})"));
            assert!(
                reset < applied + REVOKED_WITHIN,
                "the {side} is reset {:?} after the change (stuck: {stuck})",
                reset - applied
            );
        }
        place.end(pair).assert_reason("policy_revoked", "DENY");
        place.proxy.apply(&place.config(IMPATIENT));
    }
}

#[test]
fn settings_take_connections_out_and_let_them_in_again() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    let pair = place.open(&listener);
    for off in [
        "enabled: false".to_owned(),
        format!("{IMPATIENT}, except: {{ports: [{PORT}]}}"),
        format!("{IMPATIENT}, except: {{namespaces: [shop]}}"),
        format!("{IMPATIENT}, except: {{workloads: [shop/client]}}"),
        format!("{IMPATIENT}, except: {{workloads: [shop/server]}}"),
    ] {
        place.settle_in_the_kernel(&pair);
        place.proxy.apply(&place.config(&off));
        wait::eventually(wait::SOON, "the connection is taken out", || {
            pair.exchange(b"a message").expect("it goes on");
            !place.view(&pair).is_in_kernel()
        });
        assert_eq!(place.view(&pair).why_not(), "off_by_settings", "{off}");
        let before = place.view(&pair).tiers();
        pair.exchange(&[1; 10_000]).expect("it goes on");
        let after = place.view(&pair).tiers();
        assert_eq!(
            after.sent.kernel, before.sent.kernel,
            "{off}: nothing goes past the proxy"
        );
        assert_eq!(
            after.received.kernel, before.received.kernel,
            "{off}: nothing goes past the proxy"
        );
        // Another, which never was in the kernel.
        let other = place.open(&listener);
        other.exchange(&[1; 10_000]).expect("relayed");
        assert_eq!(place.view(&other).why_not(), "off_by_settings", "{off}");
        assert_eq!(place.end(other).tiers().share(), 0.0);
        place.proxy.apply(&place.config(IMPATIENT));
    }
    place.settle_in_the_kernel(&pair);
    place.end(pair).assert_reason("completed", "-");
}

#[test]
fn what_keeps_a_connection_out_is_said() {
    let Some(place) = Place::captured("") else { return };
    let listener = place.server.listen(PORT);
    let young = place.open(&listener);
    young.exchange(b"hello").expect("relayed");
    assert_eq!(place.view(&young).why_not(), "too_young");

    let (blocking_client, blocking_server) = (place.open(&listener), place.open(&listener));
    blocking_client.client.set_nonblocking(false).expect("fcntl");
    blocking_server.server.set_nonblocking(false).expect("fcntl");
    let rows = [("blocking", &blocking_client), ("blocking", &blocking_server)];
    for (why, pair) in rows {
        wait::eventually(wait::SOON, why, || {
            pair.exchange(&[1; 1000]).expect("relayed");
            place.view(pair).why_not() == why
        });
    }
    let admin = place.proxy.admin().to_string();
    let listed = place.node.program(0, &["flows", "--json", "--admin", &admin]);
    assert!(listed.status.success(), "{listed:?}");
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap_or_else(|e| panic!("{e}: {listed:?}"));
    for (why, pair) in rows {
        let text = listed.to_string();
        assert!(
            text.contains(&pair.source().to_string()) && text.contains(why),
            "{text}"
        );
    }
}

#[test]
fn a_connection_that_talks_in_the_kernel_is_not_idle() {
    let Some(place) = Place::captured(IMPATIENT) else {
        return;
    };
    let idle = format!("timeouts: {{idle: {}s}}", IDLE.as_secs());
    place.proxy.apply(&place.config(IMPATIENT).node(idle));
    let listener = place.server.listen(PORT);
    let pair = place.open(&listener);
    place.settle_in_the_kernel(&pair);
    let relayed = |place: &Place| {
        let bytes = place.view(&pair).tiers();
        bytes.sent.total + bytes.received.total - bytes.sent.kernel - bytes.received.kernel
    };
    // A message that finds its receiver awake is relayed, and the proxy knows of it: only what comes after the last of those tells.
    let (mut before, mut since) = (relayed(&place), Instant::now());
    wait::eventually(wait::SOON, "it talks in the kernel only", || {
        pair.exchange(b"still here").expect("it is not idle");
        thread::sleep(IDLE / 10);
        let now = relayed(&place);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() >= 3 * IDLE
    });
    let quiet = Instant::now();
    for stream in [&pair.client, &pair.server] {
        assert!(reset_at(stream).is_some(), "idle, it ends");
    }
    assert!(quiet.elapsed() >= IDLE / 2, "after {:?} already", quiet.elapsed());
    place.end(pair).assert_reason("idle_timeout", "SI");
}

/// When a socket was reset; none if it was not within a long time.
fn reset_at(stream: &std::net::TcpStream) -> Option<Instant> {
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut descriptors, PollTimeout::try_from(wait::soon()).expect("fits")).expect("poll");
    let shown = descriptors[0].revents().expect("known flags");
    shown.contains(PollFlags::POLLERR).then(Instant::now)
}
