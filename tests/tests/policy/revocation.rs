//! Changes of policy and identity, and what they do to connections that are open or just being opened.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_tests::{Config, Host, Server, open, wait};

use crate::place::{DENY_CLIENT, ONLY_CLIENT, Place};

/// Issue 3: an open connection that a change denies is reset within this.
const REVOKED_WITHIN: Duration = Duration::from_millis(100);
/// From the file's rename: the watch and the loading come before the change. Generous, for a busy machine.
const REVOKED_AFTER_RENAME: Duration = Duration::from_secs(3);
/// Open connections of each client while policy changes.
const CONNECTIONS: usize = 20;

const ALLOW_BOTH: &str = "scope: WORKLOAD_SELECTOR, \
     groups: [{rules: [{matches: [{service_accounts: [shop/client, shop/other]}]}]}]";
const ONLY_OTHER: &str = "scope: WORKLOAD_SELECTOR, groups: [{rules: [{matches: [{service_accounts: [shop/other]}]}]}]";
const DENY_DEMOTED: &str =
    "scope: NAMESPACE, action: DENY, groups: [{rules: [{matches: [{service_accounts: [shop/demoted]}]}]}]";

/// Connections are opened under the first configuration of a change, the last one denies those of `client`, any between denies nobody.
/// `other` is never affected.
type Change = (&'static str, Vec<Config>);

#[test]
fn a_policy_that_denies_an_open_connection_resets_both_ends_in_time() {
    let Some(place) = Place::start(|place| place.config("[]")) else {
        return;
    };
    let free = || place.config("[]");
    let deny = |scope: &str| format!("scope: {scope}, {DENY_CLIENT}");
    let guarded = |policy: &str| place.config("[shop/rule]").policy("shop/rule", policy);
    let relabelled = |policy: &str| {
        place
            .config("[shop/rule], canonical_revision: v2")
            .policy("shop/rule", policy)
    };
    let beside_another = || free().policy("shop/rule", ONLY_OTHER.replace("WORKLOAD_SELECTOR", "NAMESPACE"));
    let mesh_allow = |scope: &str| {
        let policy =
            format!("scope: {scope}, groups: [{{rules: [{{matches: [{{service_accounts: [shop/client]}}]}}]}}]");
        beside_another().policy("mesh/allow", policy)
    };
    let trial = |dry_run: bool| free().policy("shop/rule", format!("dry_run: {dry_run}, {}", deny("NAMESPACE")));
    let changes: Vec<Change> = vec![
        ("a workload's", vec![free(), guarded(&deny("WORKLOAD_SELECTOR"))]),
        (
            "a namespace's",
            vec![free(), free().policy("shop/rule", deny("NAMESPACE"))],
        ),
        ("a global one", vec![free(), free().policy("mesh/rule", deny("GLOBAL"))]),
        ("one that changes", vec![guarded(ALLOW_BOTH), guarded(ONLY_OTHER)]),
        (
            "one that came later and changes",
            vec![free(), guarded(ALLOW_BOTH), guarded(ONLY_OTHER)],
        ),
        (
            "one that came with new labels and changes",
            vec![free(), relabelled(ALLOW_BOTH), relabelled(ONLY_OTHER)],
        ),
        (
            "one that goes and comes back",
            vec![guarded(ALLOW_BOTH), free(), guarded(ONLY_OTHER)],
        ),
        (
            "a global ALLOW withdrawn beside another",
            vec![mesh_allow("GLOBAL"), beside_another()],
        ),
        (
            "a global ALLOW that shrinks to its namespace",
            vec![mesh_allow("GLOBAL"), mesh_allow("NAMESPACE")],
        ),
        ("a dry-run one that is put in force", vec![trial(true), trial(false)]),
    ];
    place.assert_all_revoke(&changes);
}

#[test]
fn an_identity_that_denies_an_open_connection_resets_both_ends_in_time() {
    let Some(place) = Place::start(|place| place.config("[]")) else {
        return;
    };
    let guarded = |account, policy: &str| place.config_with("[shop/rule]", account).policy("shop/rule", policy);
    let demoted_are_denied = |account| place.config_with("[]", account).policy("shop/rule", DENY_DEMOTED);
    let (client, demoted) = (Some("client"), Some("demoted"));
    let changes: Vec<Change> = vec![
        (
            "one that changes",
            vec![guarded(client, ALLOW_BOTH), guarded(demoted, ALLOW_BOTH)],
        ),
        (
            "one that a stranger gets",
            vec![demoted_are_denied(None), demoted_are_denied(demoted)],
        ),
        // Who connected stays who connected, for the verdict on what is still open.
        (
            "one that has left the mesh, when policy changes",
            vec![
                guarded(client, ALLOW_BOTH),
                guarded(None, ALLOW_BOTH),
                guarded(None, ONLY_OTHER),
            ],
        ),
    ];
    place.assert_all_revoke(&changes);
}

#[test]
fn no_connection_slips_through_while_policy_changes() {
    let Some(place) = Place::start(|place| place.config("[]")) else {
        return;
    };
    let _server = Server::start(&place.server, 8080);
    let stop = wait::Stop::default();
    thread::scope(|scope| {
        let _stops_the_others = stop.when_dropped();
        for way in place.ways() {
            let (place, stop) = (&place, &stop);
            // Opens connections all the time and holds the last few of them.
            scope.spawn(move || {
                let mut held = VecDeque::new();
                while !stop.is_due() {
                    held.extend(open(&place.client, way, place.service()));
                    held.drain(..held.len().saturating_sub(10));
                }
            });
        }
        for _ in 0..40 {
            place.proxy.apply(
                &place
                    .config("[]")
                    .policy("shop/rule", format!("scope: NAMESPACE, {DENY_CLIENT}")),
            );
            // Those that were being opened just then are the ones that could slip through. Whatever is refused doesn't show here.
            wait::eventually(wait::SOON, "no connection of the denied client is open", || {
                place
                    .proxy
                    .connections()
                    .iter()
                    .all(|connection| connection["state"] != "open")
            });
            place.proxy.apply(&place.config("[]"));
            wait::eventually(wait::SOON, "the client is served again", || {
                !place.proxy.connections().is_empty()
            });
        }
    });
}

#[test]
fn a_denial_that_is_lifted_lets_the_client_in_again() {
    let Some(place) = Place::start(|place| {
        place
            .config("[shop/only-client]")
            .policy("shop/only-client", ONLY_CLIENT)
    }) else {
        return;
    };
    let _server = Server::start(&place.server, 8080);
    for _ in 0..3 {
        place.assert_denied(&place.other, place.ways()[0]);
        place.proxy.apply(&place.config("[]"));
        let mut stream = open(&place.other, place.ways()[0], place.service()).expect("connect");
        Server::greeting(&mut stream).expect("allowed now");
        place.proxy.apply(
            &place
                .config("[shop/only-client]")
                .policy("shop/only-client", ONLY_CLIENT),
        );
        let source = stream.local_addr().expect("bound");
        place.proxy.access_line(source).assert_reason("policy_revoked", "DENY");
    }
}

impl Place {
    fn assert_all_revoke(&self, changes: &[Change]) {
        let listener = self.server.listen(8080);
        for (what, configs) in changes {
            let (first, rest) = configs.split_first().expect("a configuration");
            self.proxy.apply(first);
            self.assert_revoked(what, &listener, rest);
        }
    }

    /// Connections of both clients are open; after the last of `changes` those of `client` are reset at both ends, those of `other` go on.
    fn assert_revoked(&self, what: &str, listener: &TcpListener, changes: &[Config]) {
        let (last, before) = changes.split_last().expect("a change");
        let open_all = |host: &Host| -> Vec<(TcpStream, TcpStream)> {
            let way = |n: usize| self.ways()[n % 3];
            let pair = |n| {
                let client = open(host, way(n), self.service()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                (client, listener.accept().expect("accept").0)
            };
            (0..CONNECTIONS).map(pair).collect()
        };
        let (denied, spared) = (open_all(&self.client), open_all(&self.other));
        let sources: Vec<SocketAddr> = denied
            .iter()
            .map(|(client, _)| client.local_addr().expect("open"))
            .collect();
        for harmless in before {
            self.proxy.apply(harmless);
        }
        for (client, server) in &denied {
            exchange(client, server).unwrap_or_else(|e| panic!("{what}: a connection not denied yet: {e}"));
        }
        let ends: Vec<TcpStream> = denied.into_iter().flat_map(|(a, b)| [a, b]).collect();
        let watch = thread::spawn(move || reset_times(&ends));
        let renamed = Instant::now();
        self.proxy.apply(last);
        let applied = Instant::now();
        let resets = watch.join().expect("the watching thread");
        let missing = resets.iter().filter(|reset| reset.is_none()).count();
        assert_eq!(missing, 0, "{what}: of {} ends these are not reset", resets.len());
        let reset = resets.into_iter().flatten().max().expect("some connections");
        assert!(
            reset < applied + REVOKED_WITHIN,
            "{what}: the last reset came {:?} after applying",
            reset - applied
        );
        assert!(
            reset < renamed + REVOKED_AFTER_RENAME,
            "{what}: {:?} after the rename",
            reset - renamed
        );
        for source in sources {
            self.proxy.access_line(source).assert_reason("policy_revoked", "DENY");
        }
        for (client, server) in spared {
            exchange(&client, &server).unwrap_or_else(|e| panic!("{what}: a connection still allowed: {e}"));
        }
    }
}

/// When each of the sockets was reset, without reading from any; none for those that were not within a long time.
fn reset_times(sockets: &[TcpStream]) -> Vec<Option<Instant>> {
    let mut times = vec![None; sockets.len()];
    let end = Instant::now() + wait::SOON;
    while times.contains(&None) && Instant::now() < end {
        let waiting: Vec<usize> = (0..sockets.len()).filter(|n| times[*n].is_none()).collect();
        let watch = |n: &usize| PollFd::new(sockets[*n].as_fd(), PollFlags::empty());
        let mut descriptors: Vec<PollFd<'_>> = waiting.iter().map(watch).collect();
        poll(&mut descriptors, PollTimeout::from(100u16)).expect("poll");
        let now = Instant::now();
        for (n, descriptor) in waiting.into_iter().zip(&descriptors) {
            let is_reset = descriptor
                .revents()
                .is_some_and(|shown| shown.contains(PollFlags::POLLERR));
            times[n] = is_reset.then_some(now);
        }
    }
    times
}

/// A request and a response on an open connection.
fn exchange(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from, to);
        from.write_all(b"message")?;
        to.set_read_timeout(Some(wait::SOON))?;
        let mut got = [0; 7];
        to.read_exact(&mut got)?;
        assert_eq!(&got, b"message");
    }
    Ok(())
}
