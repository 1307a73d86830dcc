//! How long a change takes from istiod's cluster to its effect on traffic, while much else changes.

use std::time::{Duration, Instant};

use underpass_tests::istiod::Pod as PodObject;
use underpass_tests::load::ask;
use underpass_tests::{Server, wait};

use crate::cluster::address;
use crate::place::{PORT, Place};

/// Changes that are timed; the slowest of a hundred is their 99th percentile.
const CHANGES: usize = 100;
/// Pods that are there beside: with each change, some of them go and others come.
const CROWD: u8 = 100;
/// How many.
const COMING: u8 = 5;
/// From a file's change to its effect: istiod's own look at it (20 ms), its debouncing (50 ms) and its push included.
const LIMIT: Duration = Duration::from_secs(1);

const DENY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: deny}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [else]}}]}]}
";

fn crowd(change: usize) -> String {
    let first = change * usize::from(COMING);
    let pods = (first..first + usize::from(CROWD)).map(|number| {
        let address = address(7, u8::try_from(number % 250 + 1).unwrap());
        PodObject::new(&format!("shop/crowd-{number}"), address)
    });
    pods.map(|pod| pod.to_string()).collect()
}

#[test]
fn a_change_is_in_force_within_a_second_while_many_others_are_made() {
    let Some(place) = Place::start() else { return };
    let server = Server::start(&place.web, PORT);
    let to = server.address();
    place.wait_until_answered(&place.other, to);
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let denies = change % 2 == 0;
        let since = Instant::now();
        place.istiod.apply("crowd", crowd(change));
        place.istiod.apply("deny", if denies { DENY } else { "" });
        wait::eventually(wait::SOON, "the change has its effect", || {
            ask(&place.other, to).is_err() == denies
        });
        times.push(since.elapsed());
    }
    times.sort();
    let of = |share: usize| times[(times.len() * share).div_ceil(100) - 1];
    eprintln!(
        "push to effect: p50 {:?}, p90 {:?}, p99 {:?}, max {:?}",
        of(50),
        of(90),
        of(99),
        of(100)
    );
    assert!(of(99) <= wait::patient(LIMIT), "{times:?}");
    ask(&place.client, to).expect("whom no change was about");
}
