//! The same requests to Envoy and to us, with the same configuration: the same answers, and the same seen by the endpoint.

use std::net::SocketAddr;

use tokio::runtime::Runtime;
use underpass_tests::{Host, Need, Process, Proxy, World, available};

use super::cases::{self, Case};
use super::client::{Client, Seen};
use super::differences::{BY_HTTP2, DIFFERENCES, Difference, without_the_incidental};
use super::endpoint::{self, Endpoint};
use super::{envoy, scene, streams};

/// How many unexplained differences a failure shows.
const SHOWN: usize = 12;
/// Requests that are made of parts, for each run.
const ANY: usize = 1500;
/// And for each way that has HTTP/2 on it.
const ANY_BY_HTTP2: usize = 500;

/// What a client speaks, and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

use Speaks::{Http1, Http2};

struct Pair {
    sides: Sides,
    _proxy: Proxy,
    _envoy: Process,
    _world: World,
}

impl Pair {
    fn start(speaks: Speaks, endpoint_speaks: Speaks) -> Self {
        let world = World::loopback();
        let (client, us, them) = (world.host(), world.host(), world.host());
        let (our_host, their_host, nobody) = (world.host(), world.host(), world.host());
        let ours = us.at(8080);
        let envoys = them.at(8080);
        // Each has an endpoint of its own, on the same port: what it sees is then told alike.
        let runtime = Runtime::new().expect("a runtime");
        let start = |host: &Host| match endpoint_speaks {
            Http1 => Endpoint::start(host, 9001, "e", Default::default()),
            Http2 => endpoint::streams::start(runtime.handle(), host, 9001, Default::default()),
        };
        let (our_endpoint, their_endpoint) = (start(&our_host), start(&their_host));
        let closed = nobody.at(9);
        let log = world.directory().join("access.log");
        let yaml = scene::ours(
            ours,
            us.at(15000),
            &log.display().to_string(),
            &[our_endpoint.address],
            closed,
        );
        let is_http2 = endpoint_speaks == Http2;
        let yaml = match is_http2 {
            true => yaml.replace("{name: web, ", "{name: web, protocol: http2, "),
            false => yaml,
        };
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            _proxy: Proxy::start_with_file(&world, &us, file),
            _envoy: envoy::start(&world, &them, envoys, (&[their_endpoint.address], is_http2), closed),
            sides: Sides {
                speaks,
                differences: DIFFERENCES
                    .iter()
                    .chain(if is_http2 { BY_HTTP2 } else { &[] })
                    .collect(),
                runtime,
                client,
                ours,
                envoys,
            },
            _world: world,
        }
    }
}

/// The two that are asked the same.
pub(crate) struct Sides {
    pub(crate) client: Host,
    pub(crate) ours: SocketAddr,
    pub(crate) envoys: SocketAddr,
    pub(crate) speaks: Speaks,
    pub(crate) differences: Vec<&'static Difference>,
    pub(crate) runtime: Runtime,
}

impl Sides {
    fn see(&self, at: SocketAddr, case: &Case) -> Seen {
        let mut seen = match self.speaks {
            Http1 => {
                let mut client = Client::connect(&self.client, at);
                client.send(case.request.as_bytes());
                client.answer(case.is_head())
            }
            Http2 => {
                let (request, body) = streams::request(case).expect("only such cases are asked");
                self.runtime.block_on(streams::ask(&self.client, at, request, body))
            }
        };
        if !case.has("x-id: ")
            && let Some((_, told)) = seen.body.split_once('\n')
        {
            // Its tries are counted with those of others without a name.
            seen.body = format!("attempt 1\n{told}");
            seen.headers.remove("content-length");
        }
        without_the_incidental(seen)
    }

    /// Compares by all of `cases`; panics with those that differ for no reason. Which differences there were.
    pub(crate) fn compare(&self, cases: &[Case]) -> Vec<bool> {
        let mut unexplained = Vec::new();
        let mut used = vec![false; self.differences.len()];
        let mut asked = 0;
        let is_said = |case: &&Case| self.speaks == Http1 || streams::request(case).is_some();
        for case in cases.iter().filter(is_said) {
            asked += 1;
            let (mut ours, mut envoys) = (self.see(self.ours, case), self.see(self.envoys, case));
            for (difference, used) in self.differences.iter().zip(&mut used) {
                let before = (ours.clone(), envoys.clone());
                (difference.undo)(case, &mut ours, &mut envoys);
                *used |= before != (ours.clone(), envoys.clone());
            }
            if ours != envoys {
                let request: String = case.request.chars().take(600).collect();
                unexplained.push(format!("{request:?}\n   ours: {ours:?}\n  envoy: {envoys:?}"));
            }
        }
        println!("{asked} of {} cases were compared", cases.len());
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
        let pair = Pair::start(Http1, Http1);
        let used = pair.sides.compare(&cases::thought_of("fixed"));
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
        let pair = Pair::start(Http1, Http1);
        pair.sides.compare(&cases::any(seed(), ANY));
    }
}

pub(crate) fn seed() -> u64 {
    let seed = std::env::var("HTTP_SEED");
    let seed = seed.map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("a number"));
    println!("HTTP_SEED={seed}");
    seed
}

/// What was thought of, and what was not, with HTTP/2 on one side or on both.
fn compare_by_http2(client: Speaks, endpoint: Speaks) {
    if available(&[Need::Envoy]) {
        let pair = Pair::start(client, endpoint);
        let used = pair.sides.compare(&cases::well_formed("fixed"));
        for (difference, used) in pair.sides.differences.iter().zip(used).skip(DIFFERENCES.len()) {
            assert!(
                used,
                "no request shows this, so it is none any more: {}",
                difference.reason
            );
        }
        pair.sides.compare(&cases::any(seed(), ANY_BY_HTTP2));
    }
}

#[test]
fn requests_by_http2_to_http1_are_treated_as_by_envoy() {
    compare_by_http2(Http2, Http1);
}

#[test]
fn requests_by_http1_to_http2_are_treated_as_by_envoy() {
    compare_by_http2(Http1, Http2);
}

#[test]
fn requests_by_http2_to_http2_are_treated_as_by_envoy() {
    compare_by_http2(Http2, Http2);
}
