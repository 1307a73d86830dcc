//! What can be measured, and of whom: scenarios by name, each a list of cases.

use anyhow::{Result, bail, ensure};

use crate::load::programs::Program;
use crate::load::requests::{Protocol, Requests};
use crate::load::{Direction, Work};
use crate::place;
use crate::system::THREADS;

/// Name of the placement of everything on the first core.
pub(crate) const ONE_CORE: &str = "one-core";
/// What is measured when nothing is asked for.
pub(crate) const DEFAULT: &str = "l4-rtt,l4-stream,l4-connect,l4-programs";
/// How the names of scenarios of connections begin: without tunnels, and with them.
pub(crate) const PLAIN: &str = "l4-";
pub(crate) const TUNNEL: &str = "hbone-";

/// The one that needs a database.
const PROGRAMS: &str = "l4-programs";
const SIZES: [usize; 3] = [64, 1024, 16 * 1024];
const CONCURRENCIES: [usize; 2] = [1, 16];
/// Of HTTP's cases: connections of a saturated proxy, requests at a time on each where it is HTTP/2, and bytes of a short and of a long answer.
const CONNECTIONS: usize = 64;
const STREAMS: usize = 8;
const SHORT: usize = 1024;
const LONG: usize = 1024 * 1024;
/// Requests per second that are offered whatever comes back: what the slower of the peers can do twice over.
const OFFERED: u32 = 4000;

/// Scenarios that are measured together, because the same systems serve them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Connections through one proxy, or none.
    Plain,
    /// Connections through a tunnel between two.
    Tunnel,
    /// HTTP requests.
    Requests,
    /// HTTP requests that are authenticated, authorized, counted and logged.
    Secured,
}

impl Family {
    const ALL: [Family; 4] = [Family::Plain, Family::Tunnel, Family::Requests, Family::Secured];

    /// The one that all of `scenarios` belong to.
    pub(crate) fn of<'a>(scenarios: impl Iterator<Item = &'a str>) -> Result<Family> {
        let mut found = None;
        for scenario in scenarios {
            let is_in = |family: &Family| family.scenarios().split(',').any(|known| known == scenario);
            let Some(family) = Family::ALL.into_iter().find(is_in) else {
                let known: Vec<&str> = Family::ALL.into_iter().map(Family::scenarios).collect();
                bail!("unknown scenario {scenario:?}; known: {}", known.join(", "));
            };
            ensure!(
                found.is_none_or(|found| found == family),
                "{scenario} is not measured with scenarios of another kind: {} is a run of its own",
                family.scenarios()
            );
            found = Some(family);
        }
        Ok(found.unwrap_or(Family::Plain))
    }

    fn scenarios(self) -> &'static str {
        match self {
            Family::Plain => DEFAULT,
            Family::Tunnel => "hbone-rtt,hbone-stream,hbone-connect",
            Family::Requests => "http1,h2,grpc",
            Family::Secured => "http1-secured",
        }
    }

    /// Whom they are measured of when nobody is named; `isolated`: with network namespaces, which capture needs.
    pub(crate) fn systems(self, isolated: bool) -> Result<&'static str> {
        Ok(match (self, isolated) {
            (Family::Tunnel, true) => "underpass-hbone,envoy-hbone",
            (Family::Tunnel, false) => bail!("tunnels are between captured pods, which need root"),
            (Family::Requests, _) => "direct,underpass-http,underpass-http-1000,envoy-http",
            (Family::Secured, _) => {
                "underpass-http+bare,underpass-http,underpass-http+rbac,underpass-http+jwt,underpass-http+log,underpass-http+all,\
                 envoy-http,envoy-http+rbac,envoy-http+jwt,envoy-http+log,envoy-http+all"
            }
            (Family::Plain, true) => "direct,underpass-relay,underpass-captured,underpass-kernel,haproxy,envoy",
            (Family::Plain, false) => "direct,underpass-relay,haproxy,envoy",
        })
    }
}

/// Which cores the three parties get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names)] // Each is a placement on cores.
pub(crate) enum Placement {
    /// Client on the first core, server on the second, the proxy free to use both: a node as it is run.
    CrossCore,
    /// All three on the first core: what a path costs in CPU, without wake-ups across cores.
    OneCore,
    /// Client and server on the first core, the proxy alone on the second: what a proxy can do that has a core to itself. Where all share all
    /// cores, its rate is that of client and server for the most part.
    OwnCore,
}

impl Placement {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Placement::CrossCore => "cross-core",
            Placement::OneCore => ONE_CORE,
            Placement::OwnCore => "own-core",
        }
    }

    /// How many threads a proxy may use.
    pub(crate) fn threads(self) -> &'static str {
        match self {
            Placement::CrossCore | Placement::OneCore => THREADS,
            Placement::OwnCore => "1",
        }
    }
}

/// All placements; an error on a machine that has one core only.
pub(crate) fn placements() -> Result<[Placement; 3]> {
    if place::cores()?.len() < 2 {
        bail!("two cores are needed: client and server would share the only one");
    }
    Ok([Placement::CrossCore, Placement::OneCore, Placement::OwnCore])
}

/// Whether a scenario's server needs a database.
pub(crate) fn needs_database(scenario: &str) -> bool {
    scenario == PROGRAMS
}

/// The cases of a scenario that a [`Family`] has.
pub(crate) fn cases(scenario: &str) -> Result<Vec<(Work, Placement)>> {
    let across = |works: Vec<Work>| works.into_iter().map(|work| (work, Placement::CrossCore)).collect();
    Ok(match scenario.replace(TUNNEL, PLAIN).as_str() {
        "l4-rtt" => [Placement::CrossCore, Placement::OneCore]
            .into_iter()
            .flat_map(|placement| SIZES.map(|size| (Work::RoundTrip { size }, placement)))
            .collect(),
        "l4-stream" => across(vec![
            Work::Stream {
                direction: Direction::ClientToServer,
            },
            Work::Stream {
                direction: Direction::ServerToClient,
            },
        ]),
        "l4-connect" => across(CONCURRENCIES.map(|concurrency| Work::Connect { concurrency }).to_vec()),
        PROGRAMS => across(Program::ALL.map(|program| Work::Program { program }).to_vec()),
        "http1" => requests(Protocol::Http1),
        "h2" => requests(Protocol::H2),
        "grpc" => requests(Protocol::Grpc),
        "http1-secured" => secured(),
        _ => bail!("{scenario} has no cases"),
    })
}

/// A saturated proxy, one request at a time, long answers, and requests that come whether it answers or not; what saturates a proxy also where
/// it has a core to itself.
fn requests(protocol: Protocol) -> Vec<(Work, Placement)> {
    let streams = if protocol == Protocol::Http1 { 1 } else { STREAMS };
    let saturated = Requests {
        streams,
        ..saturated(protocol)
    };
    let alone = Requests {
        connections: 1,
        streams: 1,
        ..saturated
    };
    let long = Requests {
        bytes: LONG,
        streams: 1,
        ..saturated
    };
    let offered = Requests {
        rate: OFFERED,
        ..saturated
    };
    let mut cases = vec![saturated, alone, long];
    // The program that offers them has no frames of gRPC's.
    if protocol != Protocol::Grpc {
        cases.push(offered);
    }
    let across = cases.into_iter().map(|case| (case, Placement::CrossCore));
    let alone = [saturated, long].map(|case| (case, Placement::OwnCore));
    let all = across.chain(alone);
    all.map(|(requests, placement)| (Work::Requests { requests }, placement))
        .collect()
}

fn saturated(protocol: Protocol) -> Requests {
    Requests {
        protocol,
        connections: CONNECTIONS,
        streams: 1,
        bytes: SHORT,
        rate: 0,
        secured: false,
    }
}

/// Requests with a token as fast as the answers come.
fn secured() -> Vec<(Work, Placement)> {
    let requests = Requests {
        secured: true,
        ..saturated(Protocol::Http1)
    };
    let placements = [Placement::CrossCore, Placement::OwnCore];
    placements
        .map(|placement| (Work::Requests { requests }, placement))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_cases_and_belongs_to_one_family() {
        for family in Family::ALL {
            for scenario in family.scenarios().split(',') {
                assert_eq!(Family::of([scenario].into_iter()).expect("known"), family);
                assert!(!cases(scenario).expect("has cases").is_empty(), "{scenario}");
            }
        }
        assert!(Family::of(["l4-rtt", "http1"].into_iter()).is_err());
        assert!(Family::of(["l7"].into_iter()).is_err());
    }
}
