//! The same requests to Envoy and to us, with the same configuration: the same answers, and the same seen by the endpoint.

use std::net::SocketAddr;

use underpass_tests::{Host, Need, Process, Proxy, World, available};

use super::cases::{self, Case};
use super::client::{Client, Seen};
use super::differences::{DIFFERENCES, without_the_incidental};
use super::endpoint::Endpoint;
use super::{envoy, scene};

/// How many unexplained differences a failure shows.
const SHOWN: usize = 12;
/// Requests that are made of parts, for each run.
const ANY: usize = 1500;

struct Pair {
    client: Host,
    ours: SocketAddr,
    envoys: SocketAddr,
    _proxy: Proxy,
    _envoy: Process,
    _world: World,
}

impl Pair {
    fn start() -> Self {
        let world = World::loopback();
        let (client, us, them) = (world.host(), world.host(), world.host());
        let (our_host, their_host, nobody) = (world.host(), world.host(), world.host());
        let ours = us.at(8080);
        let envoys = them.at(8080);
        // Each has an endpoint of its own, on the same port: what it sees is then told alike.
        let our_endpoint = Endpoint::start(&our_host, 9001, "e", Default::default());
        let their_endpoint = Endpoint::start(&their_host, 9001, "e", Default::default());
        let closed = nobody.at(9);
        let log = world.directory().join("access.log");
        let yaml = scene::ours(
            ours,
            us.at(15000),
            &log.display().to_string(),
            &[our_endpoint.address],
            closed,
        );
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            _proxy: Proxy::start_with_file(&world, &us, file),
            _envoy: envoy::start(&world, &them, envoys, &[their_endpoint.address], closed),
            client,
            ours,
            envoys,
            _world: world,
        }
    }

    fn see(&self, at: SocketAddr, case: &Case) -> Seen {
        let mut client = Client::connect(&self.client, at);
        client.send(case.request.as_bytes());
        let mut seen = client.answer(case.is_head());
        if !case.has("x-id: ")
            && let Some((_, told)) = seen.body.split_once('\n')
        {
            // Its tries are counted with those of others without a name.
            seen.body = format!("attempt 1\n{told}");
            seen.headers.remove("content-length");
        }
        without_the_incidental(seen)
    }

    /// Compares by all of `cases`; panics with those that differ for no reason.
    fn compare(&self, cases: &[Case]) -> Vec<bool> {
        let mut unexplained = Vec::new();
        let mut used = vec![false; DIFFERENCES.len()];
        for case in cases {
            let (mut ours, mut envoys) = (self.see(self.ours, case), self.see(self.envoys, case));
            for (difference, used) in DIFFERENCES.iter().zip(&mut used) {
                let before = (ours.clone(), envoys.clone());
                (difference.undo)(case, &mut ours, &mut envoys);
                *used |= before != (ours.clone(), envoys.clone());
            }
            if ours != envoys {
                let request: String = case.request.chars().take(600).collect();
                unexplained.push(format!("{request:?}\n   ours: {ours:?}\n  envoy: {envoys:?}"));
            }
        }
        let count = unexplained.len();
        unexplained.truncate(std::env::var("SHOWN").map_or(SHOWN, |shown| shown.parse().expect("a number")));
        assert!(
            count == 0,
            "{count} of {} differ:\n{}",
            cases.len(),
            unexplained.join("\n")
        );
        used
    }
}

#[test]
fn requests_that_were_thought_of_are_treated_as_by_envoy() {
    if available(&[Need::Envoy]) {
        let pair = Pair::start();
        let used = pair.compare(&cases::thought_of("fixed"));
        let unused = DIFFERENCES.iter().zip(used).filter(|(_, used)| !used);
        let unused: Vec<&str> = unused.map(|(difference, _)| difference.reason).collect();
        assert!(
            unused.is_empty(),
            "no request shows these, so they are none any more: {unused:#?}"
        );
    }
}

/// `HTTP_SEED=n` repeats a run; each run has its own otherwise, and a failure names it.
#[test]
fn requests_that_nobody_thought_of_are_treated_as_by_envoy() {
    if available(&[Need::Envoy]) {
        let seed = std::env::var("HTTP_SEED")
            .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("a number"));
        println!("HTTP_SEED={seed}");
        let pair = Pair::start();
        pair.compare(&cases::any(seed, ANY));
    }
}
