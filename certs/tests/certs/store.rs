//! The store against a source that a test holds in its hands. Time is tokio's, which stands still until everybody
//! waits.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use underpass_certs::{
    Backoff, CertificateSource, IdentityStore, Lease, Pending, SourceError, StoreSettings, Trust, TrustDomains,
    WorkloadCertificate,
};
use underpass_config::Identity;

use crate::authority::{Authority, HOUR, Paper, identity};

const MINUTE: Duration = Duration::from_secs(60);

/// The wall clock, by tokio's time.
fn clock() -> SystemTime {
    thread_local! {
        static START: (Instant, SystemTime) = (Instant::now(), SystemTime::now());
    }
    START.with(|(start, wall)| *wall + start.elapsed())
}

struct Source {
    authority: Mutex<Arc<Authority>>,
    life: Mutex<Duration>,
    /// How long each request takes.
    takes: Mutex<Duration>,
    failing: Mutex<Option<fn() -> SourceError>>,
    calls: Mutex<Vec<(Identity, Instant)>>,
    on_their_way: AtomicUsize,
    most_on_their_way: AtomicUsize,
}

impl Source {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            authority: Mutex::new(Arc::new(Authority::new())),
            life: Mutex::new(HOUR),
            takes: Mutex::new(Duration::from_millis(10)),
            failing: Mutex::new(None),
            calls: Mutex::default(),
            on_their_way: AtomicUsize::new(0),
            most_on_their_way: AtomicUsize::new(0),
        })
    }

    fn calls(&self) -> Vec<(Identity, Instant)> {
        self.calls.lock().unwrap().clone()
    }

    fn fail(&self, how: Option<fn() -> SourceError>) {
        *self.failing.lock().unwrap() = how;
    }
}

impl CertificateSource for Source {
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        Box::pin(async move {
            self.calls.lock().unwrap().push((identity.clone(), Instant::now()));
            let now = self.on_their_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_on_their_way.fetch_max(now, Ordering::Relaxed);
            let takes = *self.takes.lock().unwrap();
            sleep(takes).await;
            self.on_their_way.fetch_sub(1, Ordering::Relaxed);
            let failing = *self.failing.lock().unwrap();
            if let Some(fail) = failing {
                return Err(fail());
            }
            let life = *self.life.lock().unwrap();
            let authority = self.authority.lock().unwrap().clone();
            Ok(authority.issue(identity, &Paper::of(identity, clock(), life)))
        })
    }
}

fn unavailable() -> SourceError {
    SourceError::Unavailable { message: "down".into() }
}

fn invalid() -> SourceError {
    SourceError::Invalid { message: "no".into() }
}

fn store(source: &Arc<Source>, in_flight: usize) -> IdentityStore {
    clock(); // starts with the test
    let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
    let settings = StoreSettings {
        in_flight,
        backoff: Backoff::new(Duration::from_secs(1), MINUTE),
        clock,
        ..Default::default()
    };
    let (store, serving) = IdentityStore::new(source.clone(), trust, settings);
    tokio::spawn(serving);
    store
}

fn account(index: usize) -> Identity {
    identity("shop", &format!("account-{index}"))
}

fn hold_many(store: &IdentityStore, count: usize) -> Vec<Lease> {
    (0..count).map(|index| store.hold(&account(index))).collect()
}

async fn all_ready(leases: &[Lease]) {
    for lease in leases {
        lease.ready(HOUR).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_for_one_identity_cost_one_request() {
    let source = Source::new();
    let store = store(&source, 8);
    let leases: Vec<Lease> = (0..50).map(|_| store.hold(&account(1))).collect();
    let waiting: Vec<_> = leases
        .into_iter()
        .map(|lease| tokio::spawn(async move { lease.ready(HOUR).await.map(|one| one.serial().to_owned()) }))
        .collect();
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    assert_eq!(source.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_identities_are_asked_for_a_few_at_a_time() {
    let source = Source::new();
    let store = store(&source, 4);
    let leases = hold_many(&store, 1000);
    all_ready(&leases).await;
    assert_eq!(source.calls().len(), 1000);
    assert_eq!(source.most_on_their_way.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_goes_first() {
    let source = Source::new();
    let store = store(&source, 1);
    let leases = hold_many(&store, 100);
    let last = &leases[99];
    last.ready(HOUR).await.unwrap();
    let position = source
        .calls()
        .iter()
        .position(|(identity, _)| *identity == account(99))
        .unwrap();
    assert!(position <= 1, "{position} went before it");
}

#[tokio::test(start_paused = true)]
async fn who_is_used_is_renewed_before_who_is_not() {
    let source = Source::new();
    let store = store(&source, 1);
    let leases = hold_many(&store, 20);
    // Not `ready`, which would be using them.
    while store.status().iter().any(|status| status.certificate.is_none()) {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(leases[13].slot().valid().is_some());
    // So slow that all have become due before the first one is renewed.
    *source.takes.lock().unwrap() = 20 * MINUTE;
    while source.calls().len() < 22 {
        sleep(MINUTE).await;
    }
    let first_two: Vec<Identity> = source.calls()[20..]
        .iter()
        .map(|(identity, _)| identity.clone())
        .collect();
    assert!(first_two.contains(&account(13)), "{first_two:?}");
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_before_half_of_their_life_and_not_all_at_once() {
    let source = Source::new();
    let store = store(&source, 8);
    let leases = hold_many(&store, 50);
    all_ready(&leases).await;
    let begun = Instant::now();
    sleep(31 * MINUTE).await;
    let renewals: Vec<Duration> = source.calls()[50..].iter().map(|(_, at)| *at - begun).collect();
    assert_eq!(renewals.len(), 50);
    assert!(
        renewals.iter().all(|at| *at > 23 * MINUTE && *at <= 30 * MINUTE),
        "{renewals:?}"
    );
    let minutes: HashSet<u64> = renewals.iter().map(|at| at.as_secs() / 60).collect();
    assert!(minutes.len() >= 4, "{minutes:?}");
}

#[tokio::test(start_paused = true)]
async fn while_the_ca_is_down_the_old_certificate_serves_until_it_expires() {
    let source = Source::new();
    let store = store(&source, 8);
    let lease = store.hold(&account(1));
    let first = lease.ready(HOUR).await.unwrap();
    source.fail(Some(unavailable));
    sleep(59 * MINUTE).await;
    assert_eq!(lease.slot().valid().unwrap().serial(), first.serial());
    let tries = source.calls().len() - 1;
    assert!(
        (20..60).contains(&tries),
        "{tries} tries in half an hour, at most a minute apart"
    );
    assert!(
        store.status()[0]
            .last_error
            .as_deref()
            .is_some_and(|error| error.contains("down"))
    );
    sleep(2 * MINUTE).await;
    assert!(lease.slot().valid().is_none(), "expired, and still shown");
    let error = lease.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(
        error.to_string().contains("account-1") && error.to_string().contains("down"),
        "{error}"
    );
    source.fail(None);
    lease.ready(2 * MINUTE).await.unwrap();
    assert_eq!(store.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_asked_for_again_soon() {
    let source = Source::new();
    let store = store(&source, 8);
    source.fail(Some(invalid));
    let _lease = store.hold(&account(1));
    sleep(4 * MINUTE).await;
    assert_eq!(source.calls().len(), 1);
    sleep(2 * MINUTE).await;
    assert_eq!(source.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_panics_is_tried_again() {
    let source = Source::new();
    let store = store(&source, 1);
    source.fail(Some(|| panic!("a bug of the source")));
    let lease = store.hold(&account(1));
    let error = lease.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    source.fail(None);
    lease.ready(2 * MINUTE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_expired_names_the_clocks() {
    let source = Source::new();
    let store = store(&source, 8);
    *source.life.lock().unwrap() = Duration::ZERO;
    let lease = store.hold(&account(1));
    let error = lease.ready(MINUTE).await.unwrap_err();
    assert!(error.to_string().contains("compare the clocks"), "{error}");
}

/// By a clock that is nearly a life ahead, what comes is about to expire.
#[tokio::test(start_paused = true)]
async fn certificates_that_come_about_to_expire_are_not_asked_for_without_end() {
    let source = Source::new();
    let store = store(&source, 8);
    // Certificates count in seconds: half a second is left at least.
    *source.life.lock().unwrap() = Duration::from_millis(1500);
    let leases = hold_many(&store, 10);
    sleep(MINUTE).await;
    let calls = source.calls().len();
    assert!(
        (300..=10 * 61).contains(&calls),
        "{calls} requests of {} identities in a minute",
        leases.len()
    );
}

/// A thousand identities whose certificates came together: how often they are renewed, and how many at once.
#[tokio::test(start_paused = true)]
async fn the_renewals_of_a_thousand_identities_are_spread() {
    let source = Source::new();
    let store = store(&source, 8);
    let leases = hold_many(&store, 1000);
    all_ready(&leases).await;
    let before = source.calls().len();
    // Each lives for an hour, and is renewed after 24 to 30 minutes.
    sleep(31 * MINUTE).await;
    let renewals = &source.calls()[before..];
    assert_eq!(renewals.len(), 1000);
    let mut by_second: HashMap<u64, usize> = HashMap::new();
    for (_, at) in renewals {
        *by_second.entry((*at - renewals[0].1).as_secs()).or_default() += 1;
    }
    let most = by_second.values().max().copied().unwrap_or_default();
    // Over six minutes, 1000 are some 3 each second.
    assert!(most <= 20, "{most} in one second");
    assert!(source.most_on_their_way.load(Ordering::Relaxed) <= 8);
}

#[tokio::test(start_paused = true)]
async fn who_is_given_up_is_forgotten() {
    let source = Source::new();
    let store = store(&source, 8);
    let (first, second) = (store.hold(&account(1)), store.hold(&account(1)));
    first.ready(HOUR).await.unwrap();
    assert_eq!(store.trust().roots(), 1);
    drop(first);
    assert_eq!(store.status().len(), 1);
    drop(second);
    assert_eq!((store.status().len(), store.trust().roots()), (0, 0));
    let calls = source.calls().len();
    sleep(3 * HOUR).await;
    assert_eq!(source.calls().len(), calls);
    // Held again, it is fetched again.
    store.hold(&account(1)).ready(HOUR).await.unwrap();
}

/// While some certificates are of the old root and some of the new one, peers of both are believed.
#[tokio::test(start_paused = true)]
async fn an_old_root_is_believed_until_its_last_certificate_is_replaced() {
    let source = Source::new();
    let store = store(&source, 8);
    let leases = hold_many(&store, 10);
    all_ready(&leases).await;
    assert_eq!(store.trust().roots(), 1);
    *source.authority.lock().unwrap() = Arc::new(Authority::new());
    let mut seen_both = false;
    for _ in 0..31 * 60 {
        sleep(Duration::from_secs(1)).await;
        seen_both |= store.trust().roots() == 2;
    }
    assert!(seen_both);
    assert_eq!(store.trust().roots(), 1);
    assert_eq!(source.calls().len(), 20);
}
