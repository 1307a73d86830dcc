//! Routes, endpoints and weights change, and no request fails or goes where its route did not lead.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::load::{Answer, Judge, Load};
use super::plan::{Plan, ROUTES};
use super::{Place, apply, wanted};

/// What each endpoint speaks: three HTTP/1.1, two HTTP/2.
const IS_HTTP2: [bool; 5] = [false, false, false, true, true];
const PATHS: [&str; ROUTES] = ["/r0/", "/r1/", "/r2/", "/r3/"];

/// All generations, and which is in force.
#[derive(Default)]
struct Generations {
    plans: Mutex<Vec<Plan>>,
    in_force: AtomicUsize,
}

#[derive(Clone)]
struct ByGeneration(Arc<Generations>);

impl Judge for ByGeneration {
    fn moment(&self) -> usize {
        self.0.in_force.load(Ordering::SeqCst)
    }

    fn verdict(&self, before: usize, answer: &Answer) -> Result<(), String> {
        if answer.status != 200 {
            return Err(format!("failed with {}", answer.status));
        }
        if answer.header("x-path") != answer.path {
            return Err("another request's answer".into());
        }
        let plans = self.0.plans.lock().map_err(|_| "a test panicked")?;
        let told = answer.header("x-generation").parse().map_err(|_| "no generation")?;
        if !(before..plans.len()).contains(&told) {
            return Err(format!("of generation {told}, not of {before} to {}", plans.len() - 1));
        }
        let server: IpAddr = answer.header("x-server").parse().map_err(|_| "no endpoint")?;
        let route = answer.path[2..3].parse().map_err(|_| "no route")?;
        match plans[told].allows(route, answer.header("x-cluster"), server) {
            true => Ok(()),
            false => Err(format!("its route leads nowhere near: {:?}", plans[told])),
        }
    }
}

#[test]
fn no_request_fails_or_goes_astray_while_everything_changes() {
    let (requests, changes) = (wanted("UNDERPASS_REQUESTS", 20_000), wanted("UNDERPASS_CHANGES", 200));
    let place = Place::new(&IS_HTTP2);
    let addresses = place.addresses();
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let generations = Arc::new(Generations::default());
    let mut next = |number| Plan::random(number, &addresses, &IS_HTTP2, &mut random);
    let first = next(0);
    let proxy = place.start(&place.yaml(&first.yaml()));
    generations.plans.lock().expect("nobody panics").push(first);
    let judge = ByGeneration(generations.clone());
    let load = Load::start(&place.client, place.at(), &PATHS, judge, None, false);
    let mut number = 0;
    while (number as u64) < changes || load.answered() < requests {
        number += 1;
        let plan = next(number);
        let yaml = place.yaml(&plan.yaml());
        // Before it can be in force, it may be answered by.
        generations.plans.lock().expect("nobody panics").push(plan);
        apply(&proxy, &yaml);
        generations.in_force.store(number, Ordering::SeqCst);
        if load.has_failed() {
            break;
        }
    }
    let outcome = load.stop();
    println!("{} requests, {number} changes", outcome.answered);
    assert!(
        outcome.wrong.is_empty(),
        "{} wrong: {:#?}",
        outcome.wrong.len(),
        &outcome.wrong[..1]
    );
    let counted = proxy
        .metrics()
        .sum("underpass_http_requests_total", &[("response_code", "200")]);
    assert_eq!(counted, outcome.answered, "each is counted once");
}
