//! When the proxy, the agent or both are gone: captured pods are refused, nothing passes unchecked, and the next start heals.

use std::net::IpAddr;

use underpass_tests::capture::{Agent, Objects};
use underpass_tests::{Process, Proxy, Server, wait};

use crate::place::{ONLY_CLIENT, PORT, Place, ask, connect_by_program};
use underpass_tests::load::{Tally, under_load};

/// Connections wait for a proxy that is gone so long before they are refused.
const REFUSE_SOON: [&str; 2] = ["--refuse-after", "300ms"];
const ROUNDS: usize = 12;

/// A place whose server is guarded: only `client` may connect to it.
fn guarded() -> Option<Place> {
    Place::start_with(&REFUSE_SOON, |hosts| {
        hosts.config("shop/rule").policy("shop/rule", ONLY_CLIENT)
    })
}

impl Place {
    /// What runs of the place can be taken away and given back.
    fn restart_proxy(&mut self) {
        let config = self.config("shop/rule").policy("shop/rule", ONLY_CLIENT);
        self.proxy = self.node.start_proxy(&config);
    }

    fn restart_agent(&mut self) {
        self.agent = self.node.start_agent_with(&REFUSE_SOON);
    }

    /// Policy is in force: who may is served, who may not is refused, as is who isn't captured.
    #[track_caller]
    fn assert_healed(&self, server: &Server) {
        let what = "the allowed pod is served again";
        wait::eventually(wait::SOON, what, || ask(&self.client, server.address()).is_ok());
        self.assert_refused(&self.other, server.address());
        self.assert_refused(&self.stranger, server.address());
        self.assert_only_client(server);
    }

    /// Nobody gets through, and everybody is told soon.
    #[track_caller]
    fn assert_closed(&self, server: &Server) {
        let before = server.accepted();
        for host in [&*self.client, &self.other, &self.stranger] {
            self.assert_refused(host, server.address());
        }
        assert_eq!(server.accepted(), before, "nothing reaches the server");
        let self_call = ask(&self.server, server.address());
        self_call.expect("a pod's talk with itself needs nobody");
    }

    #[track_caller]
    fn assert_only_client(&self, server: &Server) {
        let allowed: Vec<IpAddr> = self
            .client
            .addresses()
            .into_iter()
            .chain(self.server.addresses())
            .collect();
        let arrivals = server.arrivals();
        let others: Vec<_> = arrivals
            .iter()
            .filter(|arrival| !allowed.contains(&arrival.accepted_from.ip()))
            .collect();
        assert!(others.is_empty(), "these should not have got through: {others:?}");
    }
}

#[test]
fn without_a_proxy_pods_are_closed_until_the_next_one_comes() {
    let Some(mut place) = guarded() else { return };
    let server = Server::start(&place.server, PORT);
    let mut open = ask(&place.client, server.address()).expect("allowed");
    place.proxy.process().kill();
    assert!(
        Server::echo(&mut open, b"anybody?").is_err(),
        "what it relayed has ended"
    );
    place.assert_closed(&server);
    place.restart_proxy();
    place.assert_healed(&server);
}

#[test]
fn the_cgroup_of_a_proxy_that_is_gone_exempts_nobody() {
    let Some(mut place) = guarded() else { return };
    let [server, remote] = [&*place.server, &place.remote].map(|host| Server::start(host, PORT));
    place.proxy.process().kill();
    wait::eventually(wait::SOON, "the agent has noticed", || place.node.proxies().is_empty());
    // What a container would find if it got there, by a mistake or because numbers are used again.
    let squatter = place.other.in_cgroup(&place.node.cgroup("proxy-0"));
    for to in [server.address(), remote.address()] {
        let said = connect_by_program(&place.node, &squatter, &["plainly"], to);
        assert!(said["refused"].is_string(), "{to}: {said}");
    }
    assert_eq!((server.accepted(), remote.accepted()), (0, 0));
    drop(squatter);
    place.restart_proxy();
    place.assert_healed(&server);
}

#[test]
fn a_connection_that_waits_for_a_proxy_is_served_by_the_next_one() {
    let Some(mut place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    place.proxy.process().kill();
    // Ten seconds by default: longer than a restart takes.
    let mut waiting = place
        .client
        .connect_unbound(server.address())
        .expect("the listener is the agent's");
    let config = place.config("");
    place.proxy = place.node.start_proxy(&config);
    crate::place::round_trip(&mut waiting).expect("an echo, late");
}

#[test]
fn without_an_agent_pods_are_served_and_the_next_one_takes_over() {
    let Some(mut place) = guarded() else { return };
    let server = Server::start(&place.server, PORT);
    let mut open = ask(&place.client, server.address()).expect("allowed");
    place.agent.process().kill();
    place.assert_healed(&server);
    assert!(
        !place.node.underpass(&["pods"]).status.success(),
        "there is no agent to answer"
    );
    place.restart_agent();
    assert_eq!(place.node.pods().len(), 3, "it knows the pods of the one before");
    place.assert_healed(&server);
    Server::echo(&mut open, b"still here").expect("an open connection does not notice");
    // It is in charge: a pod that it enrols is served, one that it removes is free.
    place.node.enrol(&place.stranger);
    place.assert_refused(&place.stranger, server.address());
    place.node.remove(&place.stranger);
    let remote = Server::start(&place.remote, PORT);
    ask(&place.stranger, remote.address()).expect("free again");
}

#[test]
fn without_both_pods_are_closed_and_either_may_come_back_first() {
    for agent_first in [true, false] {
        let Some(mut place) = guarded() else { return };
        let server = Server::start(&place.server, PORT);
        ask(&place.client, server.address()).expect("allowed");
        place.agent.process().kill();
        place.proxy.process().kill();
        place.assert_closed(&server);
        if agent_first {
            place.restart_agent();
            place.restart_proxy();
        } else {
            // It waits for an agent: not ready, and not gone.
            let config = place.config("shop/rule").policy("shop/rule", ONLY_CLIENT);
            place.proxy = place.node.launch_proxy(&config);
            place.restart_agent();
        }
        place.assert_healed(&server);
    }
}

/// Who is killed in a round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Proxy,
    Agent,
    Both,
}

#[test]
fn kills_at_random_under_load_let_nothing_through_unchecked() {
    let Some(mut place) = guarded() else { return };
    let server = Server::start(&place.server, PORT);
    let (client, other, stranger) = (
        (*place.client).clone(),
        (*place.other).clone(),
        (*place.stranger).clone(),
    );
    let to = server.address();
    let lanes = [(&client, to), (&client, to), (&other, to), (&stranger, to)];
    under_load(&lanes, |tallies| {
        for round in 0..ROUNDS {
            let victim = [Victim::Proxy, Victim::Agent, Victim::Both][round % 3];
            tallies[0].wait_for(fastrand::u64(1..100));
            place.kill(victim);
            place.see_the_effect(victim, tallies);
            place.revive(victim);
            // It heals by itself, for both: who may is served, who may not is refused.
            tallies[0].wait_for(5);
            place.assert_only_client(&server);
        }
    });
    place.assert_healed(&server);
    let what = "no announcement is left of those that are gone";
    wait::eventually(wait::SOON, what, || place.node.map_entries("HANDSHAKES") == 0);
}

impl Place {
    fn kill(&mut self, victim: Victim) {
        // Whichever is first, the other is there for a moment alone.
        let (agent, proxy): (&mut Agent, &mut Proxy) = (&mut self.agent, &mut self.proxy);
        match victim {
            Victim::Proxy => proxy.process().kill(),
            Victim::Agent => agent.process().kill(),
            Victim::Both if fastrand::bool() => {
                proxy.process().kill();
                agent.process().kill();
            }
            Victim::Both => {
                agent.process().kill();
                proxy.process().kill();
            }
        }
    }

    /// Whoever needs what was killed is refused; the load goes on trying.
    fn see_the_effect(&self, victim: Victim, tallies: &[Tally]) {
        let refused = |tally: &Tally| {
            let before = tally.refused();
            wait::eventually(wait::SOON, "connections are refused", || tally.refused() > before + 1);
        };
        // Without an agent a proxy serves as long as it has sockets of the pods, then connections wait for the next agent.
        if !matches!(victim, Victim::Agent) {
            tallies.iter().for_each(refused);
        }
    }

    fn revive(&mut self, victim: Victim) {
        match victim {
            Victim::Proxy => self.restart_proxy(),
            Victim::Agent => self.restart_agent(),
            Victim::Both => {
                self.restart_agent();
                self.restart_proxy();
            }
        }
    }
}

#[test]
fn detach_frees_everything() {
    for agent_lives in [true, false] {
        let Some(mut place) = guarded() else { return };
        let server = Server::start(&place.server, PORT);
        let (agent, proxy) = (place.agent.pid(), place.proxy.process().pid());
        let open = ask(&place.client, server.address()).expect("allowed");
        let before = place.node.kernel_objects(&[agent, proxy]);
        for kind in ["prog", "map", "link"] {
            assert!(
                before.iter().any(|object| object.kind == kind),
                "there is a {kind}: {before:?}"
            );
        }
        assert!(!place.node.pins().is_empty());
        if !agent_lives {
            place.agent.process().kill();
        }
        let detached = place.node.detach();
        assert!(detached.status.success(), "{detached:?}");
        if agent_lives {
            let ended = place.agent.process().wait(wait::SOON);
            assert!(ended.success(), "{ended}\n{}", place.agent.log());
        }
        assert_eq!(place.node.pins(), Vec::<String>::new());
        place.assert_nothing_attached();
        // A proxy that still has descriptors keeps what they lead to, and nothing else; it goes with its agent, or is ended by its operator.
        place.proxy.process().kill();
        wait::eventually(wait::SOON, "no program, map or link is left", || {
            place.node.existing(&before) == Objects::new()
        });
        drop(open);
        let stream = ask(&place.other, server.address()).expect("pods are as free as ever");
        let own = stream.local_addr().expect("open");
        assert_eq!(server.arrivals().last().expect("one").accepted_from, own);
        drop(stream);
        let again = place.node.detach();
        assert!(again.status.success(), "{again:?}");
        place.assert_namespaces_can_go();
    }
}

impl Place {
    /// No cgroup below the test's has a program, and no device of a pod.
    #[track_caller]
    fn assert_nothing_attached(&self) {
        let top = self.node.outer_cgroup().display().to_string();
        let said = self.node.tool("bpftool", ["-j", "cgroup", "tree", &top]);
        assert!(["", "[]"].contains(&said.trim()), "still attached: {said}");
        for pod in [&*self.client, &self.other, &self.server] {
            let mut command = Process::command("bpftool");
            command.args(["net", "show"]);
            let said = Process::run(self.node.world(), pod, "bpftool", command, wait::SOON);
            assert!(!said.contains("tcx"), "{}: {said}", pod.ip());
        }
    }

    /// Nothing refers to the pods' namespaces any more: they go when their pods are deleted.
    fn assert_namespaces_can_go(self) {
        let Self { hosts, node, .. } = self;
        let devices = || node.tool("ip", ["-br", "link"]).matches("pod").count();
        let before = devices();
        for pod in [hosts.client, hosts.other] {
            node.delete(pod);
        }
        wait::eventually(wait::SOON, "the namespaces are gone", || devices() == before - 2);
    }
}
