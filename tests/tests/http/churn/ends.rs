//! What goes away under load: an endpoint that dies, and one that is taken out.

use underpass_tests::wait;

use super::load::{Answer, Judge, Load};
use super::{Place, apply, wanted};

/// What every answer has to be.
struct Statuses(&'static [u16]);

impl Judge for Statuses {
    fn moment(&self) -> usize {
        0
    }

    fn verdict(&self, _: usize, answer: &Answer) -> Result<(), String> {
        if !self.0.contains(&answer.status) {
            return Err(format!("failed with {}", answer.status));
        }
        match answer.status != 200 || answer.header("x-path") == answer.path {
            true => Ok(()),
            false => Err("another request's answer".into()),
        }
    }
}

/// One cluster of all endpoints, with these fields in its route's `forward`.
fn http(endpoints: &[std::net::SocketAddr], forward: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("'{address}'")).collect();
    format!(
        "  clusters: [{{name: web, balancing: round-robin, idle_timeout: 2s, limits: {{retries: 1000}}, endpoints: [{}]}}]
  routes:
  - name: t
    virtual_hosts:
    - {{name: all, domains: ['*'], routes: [{{forward: {{cluster: web{forward}}}}}]}}
",
        endpoints.join(", ")
    )
}

/// Kills and revives an endpoint under load, so many times, and says what the clients saw.
fn with_deaths(place: &mut Place, deaths: u64, statuses: &'static [u16]) -> super::load::Outcome {
    let load = Load::start(&place.client, place.at(), &["/x/"], Statuses(statuses), None, false);
    let mut random = fastrand::Rng::new();
    for _ in 0..deaths {
        let endpoint = random.usize(..place.hosts.len());
        for is_death in [true, false] {
            match is_death {
                true => place.kill(endpoint),
                false => place.revive(endpoint),
            }
            let enough = load.answered() + 100;
            wait::eventually(wait::SOON, "requests go on", || load.answered() >= enough);
        }
    }
    load.stop()
}

#[test]
fn what_an_endpoint_had_when_it_died_is_tried_at_another() {
    let mut place = Place::new(&[false; 3]);
    let retry = ", retry: {on: [reset, connect-failure], retries: 3, base_interval: 1ms, other_endpoints: true}";
    let proxy = place.start(&place.yaml(&http(&place.addresses(), retry)));
    let outcome = with_deaths(&mut place, wanted("UNDERPASS_DEATHS", 40), &[200]);
    println!("{} requests", outcome.answered);
    assert!(
        outcome.wrong.is_empty(),
        "{} wrong: {:#?}",
        outcome.wrong.len(),
        &outcome.wrong[..1]
    );
    let counted = proxy
        .metrics()
        .sum("underpass_http_requests_total", &[("response_code", "200")]);
    assert_eq!(counted, outcome.answered);
    let retried = place.logged().iter().any(|line| line["attempts"].as_u64() > Some(1));
    assert!(retried, "nothing was on its way to an endpoint that died");
}

#[test]
fn what_an_endpoint_had_when_it_died_is_told_with_the_reason() {
    let mut place = Place::new(&[false; 3]);
    let _proxy = place.start(&place.yaml(&http(&place.addresses(), "")));
    let outcome = with_deaths(&mut place, wanted("UNDERPASS_DEATHS", 40), &[200, 503]);
    assert!(
        outcome.wrong.is_empty(),
        "{} wrong: {:#?}",
        outcome.wrong.len(),
        &outcome.wrong[..1]
    );
    let mut lines = Vec::new();
    wait::eventually(wait::SOON, "each is logged once", || {
        lines = place.logged();
        lines.len() as u64 >= outcome.answered
    });
    assert_eq!(lines.len() as u64, outcome.answered);
    let mut failed = 0;
    for line in &lines {
        let (status, flags) = (
            line["response_code"].as_u64(),
            line["response_flags"].as_str().unwrap_or_default(),
        );
        let is_right = match status {
            Some(200) => flags == "-",
            _ => ["UF", "UC", "UR"].contains(&flags),
        };
        assert!(is_right, "{line}");
        failed += u64::from(status != Some(200));
    }
    assert!(failed > 0, "nobody noticed the deaths");
}

/// What is on its way to an endpoint that is taken out is answered by it; nothing new goes there.
#[test]
fn an_endpoint_that_is_taken_out_finishes_what_it_has() {
    let place = Place::new(&[false; 2]);
    let (both, other) = (place.addresses(), &place.addresses()[1..]);
    let (gone, stays) = (both[0].ip().to_string(), both[1].ip().to_string());
    let proxy = place.start(&place.yaml(&http(&both, "")));
    for round in 0..2 {
        let slow = Some(("x-pause-ms", "300"));
        let load = Load::start(&place.client, place.at(), &["/x/"], Statuses(&[200]), slow, false);
        wait::eventually(wait::SOON, "the endpoint has requests", || load.answered() > 20);
        apply(&proxy, &place.yaml(&http(other, "")));
        let now = Load::start(
            &place.client,
            place.at(),
            &["/x/"],
            OnlyFrom(stays.clone()),
            None,
            false,
        );
        wait::eventually(wait::SOON, "requests go on", || now.answered() > 200);
        for outcome in [now.stop(), load.stop()] {
            assert!(outcome.wrong.is_empty(), "{round}: {:#?}", &outcome.wrong[..1]);
        }
        let host = place.endpoints[0].as_ref().expect("it lives");
        // Connections that nobody uses any more are closed before long.
        wait::eventually(wait::SOON, "nothing is connected to it", || host.open() == 0);
        apply(&proxy, &place.yaml(&http(&both, "")));
    }
    assert!(
        place
            .logged()
            .iter()
            .any(|line| line["upstream_host"].as_str().is_some_and(|at| at.starts_with(&gone)))
    );
}

/// Every answer is this endpoint's.
struct OnlyFrom(String);

impl Judge for OnlyFrom {
    fn moment(&self) -> usize {
        0
    }

    fn verdict(&self, _: usize, answer: &Answer) -> Result<(), String> {
        match answer.status == 200 && answer.header("x-server") == self.0 {
            true => Ok(()),
            false => Err("from an endpoint that was taken out".into()),
        }
    }
}
