//! Objects changed and deleted while requests come: how long until they have their effect, and that no request fails.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use underpass_tests::wait;

use super::Mesh;
use super::server::{ask, get};
use super::web;

/// Changes that are timed in a batch.
const CHANGES: usize = 40;
/// One batch in time is enough: another program that keeps the machine busy is nobody's fault here.
const BATCHES: usize = 3;
/// From a file's change to its effect: istiod's own look at it (20 ms), its debouncing (100 ms) and its push included.
const LIMIT: Duration = Duration::from_secs(1);

/// Routes of which the first adds `number` to the answer; every other time there are subsets, which come and go with the routes that lead there.
fn objects(number: usize) -> String {
    let (subsets, subset) = match number % 2 {
        0 => ("subsets: [{name: s, labels: {app: web}}]", ", subset: s"),
        _ => ("", ""),
    };
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{namespace: shop, name: web}}
spec: {{host: web.shop.svc.cluster.local, {subsets}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{namespace: shop, name: web}}
spec:
  hosts: [web.shop.svc.cluster.local]
  http:
  - headers: {{response: {{set: {{x-change: '{number}'}}}}}}
    route: [{{destination: {{host: web.shop.svc.cluster.local{subset}}}}}]
"
    )
}

#[derive(Default)]
struct Load {
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Load {
    fn note(&self, answer: std::io::Result<super::Answer>) -> bool {
        match answer {
            Ok(answer) if answer.status == 200 => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                true
            }
            other => {
                self.failed.lock().unwrap().push(format!("{other:?}"));
                false
            }
        }
    }
}

/// Mutants: clusters that go at once (`Serving::fits` without chains), and new ones that do not wait for their endpoints (without `wanted`).
#[test]
fn changes_have_their_effect_within_a_second_and_no_request_fails() {
    let Some(mesh) = Mesh::start() else { return };
    let (load, stop) = (Load::default(), wait::Stop::default());
    let mut p99 = Vec::new();
    thread::scope(|scope| {
        let _stops_the_others = stop.when_dropped();
        scope.spawn(|| {
            while !stop.is_due() {
                load.note(get(mesh.client(), web(), "/new", &[]));
            }
        });
        scope.spawn(|| {
            while !stop.is_due() {
                let mut stream = mesh.client().connect_unbound(web()).expect("the node takes it");
                while !stop.is_due() && load.note(ask(&mut stream, "/kept", &[], false)) {}
            }
        });
        for batch in 0..BATCHES {
            p99.push(batch_of_changes(&mesh, batch));
            if p99.last().is_some_and(|p99| *p99 <= LIMIT) {
                break;
            }
        }
        mesh.nodes.istiod.delete("changing");
        mesh.wait_for("/", "the routes are gone", |answer| answer.header("x-change").is_none());
    });
    let failed = load.failed.into_inner().unwrap();
    let answered = load.answered.into_inner();
    assert!(
        failed.is_empty(),
        "{} of {answered} failed, first {}",
        failed.len(),
        failed[0]
    );
    assert!(answered > 10 * CHANGES, "{answered}");
    assert!(p99.last().is_some_and(|p99| *p99 <= LIMIT), "{p99:?}");
}

/// The 99th percentile of a batch.
fn batch_of_changes(mesh: &Mesh, batch: usize) -> Duration {
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let number = batch * CHANGES + change;
        let since = Instant::now();
        mesh.apply("changing", &objects(number));
        let is_there = number.to_string();
        mesh.wait_for("/", "the change has its effect", |answer| {
            answer.header("x-change") == Some(&is_there)
        });
        times.push(since.elapsed());
    }
    times.sort();
    let of = |share: usize| times[(times.len() * share).div_ceil(100) - 1];
    eprintln!("push to effect: p50 {:?}, p99 {:?}, max {:?}", of(50), of(99), of(100));
    of(99)
}
