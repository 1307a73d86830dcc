//! Outlier detection (`config.cluster.v3.OutlierDetection`): endpoints that fail where others don't are given nothing for a while.
//!
//! Each endpoint has a [`Monitor`], which requests tell what came of them: it counts failures in a row, and successes of an interval. What is a failure too
//! many ejects the endpoint at once; what only a comparison of endpoints shows is found at the end of an interval, which also takes ejected ones back. Each ejection
//! lasts longer than the one before, until the endpoint has been well for as many intervals. Rules, defaults and the words of the log are Envoy's
//! (`outlier_detection_impl.cc`).
//!
//! An ejection is a mark at the endpoint's monitor, which only clusters that detect outliers look at: with the setting they go too.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ClusterEndpoint;

/// What a configuration says of outliers. Shares are in percent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSettings {
    /// How often endpoints are compared, and taken back. Default 10 s.
    pub interval: Duration,
    /// How long the first ejection lasts. Default 30 s.
    pub base_ejection_time: Duration,
    /// How long any lasts. Default 300 s.
    pub max_ejection_time: Duration,
    /// Up to so much more, at random, so that those that went together don't come back together. Default none.
    pub max_ejection_time_jitter: Duration,
    /// How much of the cluster may be ejected at once. Default 10: of fewer than ten endpoints, none.
    pub max_ejection_percent: u32,
    /// Whether one may be, whatever `max_ejection_percent` comes to. Default no.
    pub always_eject_one: bool,
    /// Whether what is wrong on the way (no connection, no answer in time, a reset) is counted apart from what endpoints answer. Default no.
    pub split_local_origin: bool,
    /// Failures in a row, by kind; 0: never.
    pub consecutive: Consecutive,
    /// How endpoints' rates of success are compared.
    pub success_rate: SuccessRate,
    /// From which share of failures on an endpoint is ejected, whatever the others do.
    pub failure_percentage: FailurePercentage,
    /// Which share of what is found is acted upon, by kind; the rest is only told.
    pub enforcing: [u32; Kind::COUNT],
}

/// Failures in a row that eject. Defaults 5 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// Answers of 5xx.
    pub server_errors: u32,
    /// Answers of 502, 503 and 504.
    pub gateway_failures: u32,
    /// What is wrong on the way, where that is counted apart.
    pub local_origin_failures: u32,
}

/// Endpoints whose share of successes is far below the average are ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// So many endpoints with enough requests have to be there. Default 5.
    pub minimum_hosts: usize,
    /// Requests of an interval that are enough. Default 100.
    pub request_volume: u32,
    /// How many thousandths of a standard deviation are far. Default 1900.
    pub stdev_factor: u32,
}

/// Endpoints with a share of failures are ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The share. Default 85.
    pub threshold: u32,
    /// So many endpoints with enough requests have to be there. Default 5.
    pub minimum_hosts: usize,
    /// Requests of an interval that are enough. Default 50.
    pub request_volume: u32,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        let mut enforcing = [100; Kind::COUNT];
        for kind in [
            Kind::ConsecutiveGatewayFailure,
            Kind::FailurePercentage,
            Kind::FailurePercentageLocalOrigin,
        ] {
            enforcing[kind as usize] = 0;
        }
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one: false,
            split_local_origin: false,
            consecutive: Consecutive {
                server_errors: 5,
                gateway_failures: 5,
                local_origin_failures: 5,
            },
            success_rate: SuccessRate {
                minimum_hosts: 5,
                request_volume: 100,
                stdev_factor: 1900,
            },
            failure_percentage: FailurePercentage {
                threshold: 85,
                minimum_hosts: 5,
                request_volume: 50,
            },
            enforcing,
        }
    }
}

/// Why an endpoint is ejected (`OutlierEjectionType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Too many 5xx in a row.
    Consecutive5xx,
    /// Too many 502, 503 and 504 in a row.
    ConsecutiveGatewayFailure,
    /// Too many failures on the way in a row.
    ConsecutiveLocalOriginFailure,
    /// Fewer successes than the others.
    SuccessRate,
    /// Fewer successes on the way than the others.
    SuccessRateLocalOrigin,
    /// Too large a share of failures.
    FailurePercentage,
    /// Too large a share of failures on the way.
    FailurePercentageLocalOrigin,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = 7;
    /// All, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::SuccessRateLocalOrigin,
        Self::FailurePercentage,
        Self::FailurePercentageLocalOrigin,
    ];

    /// As Envoy's event log has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "CONSECUTIVE_5XX",
            Self::ConsecutiveGatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
            Self::ConsecutiveLocalOriginFailure => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            Self::SuccessRate => "SUCCESS_RATE",
            Self::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
            Self::FailurePercentage => "FAILURE_PERCENTAGE",
            Self::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What came of a try at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with this status, which may be that which a status of gRPC stands for.
    Answered(u16),
    /// There was no answer in time.
    TimedOut,
    /// There was a connection, of which nothing more is known: what it carries is not looked at.
    Connected,
    /// There was no connection.
    NotConnected,
    /// The connection broke.
    Broke,
}

/// Successes among all, of an interval.
#[derive(Debug, Default)]
struct Rate(AtomicU64);

impl Rate {
    fn note(&self, is_success: bool) {
        self.0.fetch_add(1 << 32 | u64::from(is_success), Ordering::Relaxed);
    }

    /// The share of successes in percent, and of how many; it begins anew.
    fn take(&self) -> (f64, u32) {
        let counted = self.0.swap(0, Ordering::Relaxed);
        let (all, successes) = ((counted >> 32) as u32, counted as u32);
        (100.0 * f64::from(successes) / f64::from(all.max(1)), all)
    }
}

/// What is known of an endpoint's failures. It outlives updates.
#[derive(Debug, Default)]
pub struct Monitor {
    server_errors: AtomicU32,
    gateway_failures: AtomicU32,
    local_failures: AtomicU32,
    answers: Rate,
    ways: Rate,
    is_ejected: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// Since when it is ejected, and until when.
    ejected: Option<(Instant, Instant)>,
    /// How many times the base the next ejection lasts, less one.
    times: u32,
    ejections: u64,
    /// When it was last taken back.
    taken_back: Option<Instant>,
}

/// How an endpoint stands with its cluster's detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Since when it is ejected, and for how much longer at least.
    pub ejected: Option<(Duration, Duration)>,
    /// How often it has been.
    pub ejections: u64,
    /// Failures in a row: answers of 5xx, those of 502 to 504, and what went wrong on the way, where that is counted apart.
    pub in_a_row: Consecutive,
}

impl Monitor {
    /// How it stands at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let of = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let history = self.history();
        let ejected = history.ejected.filter(|_| self.is_ejected());
        Standing {
            ejected: ejected.map(|(since, until)| {
                (
                    now.saturating_duration_since(since),
                    until.saturating_duration_since(now),
                )
            }),
            ejections: history.ejections,
            in_a_row: Consecutive {
                server_errors: of(&self.server_errors),
                gateway_failures: of(&self.gateway_failures),
                local_origin_failures: of(&self.local_failures),
            },
        }
    }

    /// Whether it is ejected.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_what_was_in_a_row(&self) {
        for counter in [&self.server_errors, &self.gateway_failures, &self.local_failures] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Notes an outcome, and tells what it is one too many of.
    fn note(&self, outcome: Outcome, settings: &OutlierSettings) -> [Option<Kind>; 2] {
        if !settings.split_local_origin {
            return self.note_answer(outcome, settings);
        }
        if outcome != Outcome::NotConnected {
            // That there was a connection counts by itself.
            self.ways.note(true);
            is_one_too_many(&self.local_failures, false, 0);
        }
        if outcome == Outcome::Connected {
            return [None, None];
        }
        let is_local = !matches!(outcome, Outcome::Answered(_));
        if is_local {
            self.ways.note(false);
        }
        let limit = settings.consecutive.local_origin_failures;
        let local = is_one_too_many(&self.local_failures, is_local, limit);
        match is_local {
            true => [local.then_some(Kind::ConsecutiveLocalOriginFailure), None],
            false => self.note_answer(outcome, settings),
        }
    }

    fn note_answer(&self, outcome: Outcome, settings: &OutlierSettings) -> [Option<Kind>; 2] {
        let status = match outcome {
            Outcome::Answered(status) => status,
            Outcome::Connected => 200,
            Outcome::TimedOut => 504,
            Outcome::NotConnected | Outcome::Broke => 503,
        };
        let (is_error, is_gateways) = ((500..600).contains(&status), (502..=504).contains(&status));
        self.answers.note(!is_error);
        let limits = &settings.consecutive;
        let of_gateway = is_one_too_many(&self.gateway_failures, is_gateways, limits.gateway_failures);
        let of_server = is_one_too_many(&self.server_errors, is_error, limits.server_errors);
        [
            of_gateway.then_some(Kind::ConsecutiveGatewayFailure),
            of_server.then_some(Kind::Consecutive5xx),
        ]
    }
}

/// Counts failures in a row. Whoever comes to the limit begins anew.
fn is_one_too_many(in_a_row: &AtomicU32, is_failure: bool, limit: u32) -> bool {
    if !is_failure {
        // Most find nothing to forget, and leave the counter to the other cores' caches.
        if in_a_row.load(Ordering::Relaxed) != 0 {
            in_a_row.store(0, Ordering::Relaxed);
        }
        return false;
    }
    if limit == 0 {
        return false;
    }
    let is_last = in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= limit;
    if is_last {
        in_a_row.store(0, Ordering::Relaxed);
    }
    is_last
}

/// What is done about outliers of one cluster. It outlives updates.
#[derive(Debug, Default)]
pub struct Detector {
    /// One ejection at a time: whether there may be another depends on those that there are.
    deciding: Mutex<()>,
    detected: [AtomicU64; Kind::COUNT],
    enforced: [AtomicU64; Kind::COUNT],
    overflowed: AtomicU64,
}

/// Something to be told of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The endpoint.
    pub endpoint: std::net::SocketAddr,
    /// What happened.
    pub action: Action,
    /// Its ejections so far.
    pub ejections: u64,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was found to be an outlier; whether that was acted upon.
    Eject(Kind, bool),
    /// It is given requests again.
    Uneject,
}

/// A cluster's endpoints, as its detector looks at them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched<'a> {
    pub settings: &'a OutlierSettings,
    pub endpoints: &'a [Arc<ClusterEndpoint>],
}

impl Watched<'_> {
    fn monitors(&self) -> impl Iterator<Item = (&Arc<ClusterEndpoint>, &Monitor)> {
        let watched = self.endpoints.iter();
        watched.filter_map(|endpoint| Some((endpoint, endpoint.monitor()?)))
    }

    fn ejected(&self) -> usize {
        self.monitors().filter(|(_, monitor)| monitor.is_ejected()).count()
    }
}

impl Detector {
    /// How often endpoints were found to be outliers for this, and how often that was acted upon.
    pub fn ejections(&self, kind: Kind) -> (u64, u64) {
        let of = |counts: &[AtomicU64; Kind::COUNT]| counts[kind as usize].load(Ordering::Relaxed);
        (of(&self.detected), of(&self.enforced))
    }

    /// How often one was not ejected because enough others were.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Notes what came of a try. `random` gives any numbers.
    pub(super) fn note(
        &self,
        watched: Watched<'_>,
        endpoint: &Arc<ClusterEndpoint>,
        outcome: Outcome,
        now: Instant,
        mut random: impl FnMut() -> u32,
    ) -> Vec<Event> {
        let Some(monitor) = endpoint.monitor() else {
            return Vec::new();
        };
        let found = monitor.note(outcome, watched.settings).into_iter().flatten();
        // No allocation where nothing is found.
        let events = found.filter_map(|kind| self.eject(watched, endpoint, monitor, kind, now, &mut random));
        events.collect()
    }

    /// Ejects an endpoint, unless it is ejected or too many are.
    fn eject(
        &self,
        watched: Watched<'_>,
        endpoint: &Arc<ClusterEndpoint>,
        monitor: &Monitor,
        kind: Kind,
        now: Instant,
        mut random: impl FnMut() -> u32,
    ) -> Option<Event> {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        if monitor.is_ejected() {
            return None;
        }
        self.detected[kind as usize].fetch_add(1, Ordering::Relaxed);
        let settings = watched.settings;
        let (ejected, all) = (watched.ejected(), watched.monitors().count());
        let is_within = 100 * (ejected + 1) <= settings.max_ejection_percent.min(100) as usize * all;
        if !(is_within || settings.always_eject_one && ejected == 0) {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let is_enforced = random() % 100 < settings.enforcing[kind as usize];
        let mut history = monitor.history();
        if is_enforced {
            self.enforced[kind as usize].fetch_add(1, Ordering::Relaxed);
            let longest = settings.max_ejection_time.max(settings.base_ejection_time);
            if settings.base_ejection_time.saturating_mul(history.times) < longest + settings.base_ejection_time {
                history.times += 1;
            }
            let jitter = settings
                .max_ejection_time_jitter
                .mul_f64(f64::from(random() % 1000) / 1000.0);
            let lasts = settings.base_ejection_time.saturating_mul(history.times).min(longest) + jitter;
            history.ejected = Some((now, now + lasts));
            history.ejections += 1;
            monitor.is_ejected.store(true, Ordering::Relaxed);
        }
        Some(Event {
            endpoint: endpoint.settings.address,
            action: Action::Eject(kind, is_enforced),
            ejections: history.ejections,
        })
    }

    /// The end of an interval: takes back those whose time is over, compares the others.
    pub(super) fn compare(&self, watched: Watched<'_>, now: Instant, mut random: impl FnMut() -> u32) -> Vec<Event> {
        let mut events: Vec<Event> = watched
            .monitors()
            .filter_map(|(endpoint, monitor)| take_back(endpoint, monitor, now))
            .collect();
        let split = watched.settings.split_local_origin;
        let kinds = [
            (false, Kind::SuccessRate, Kind::FailurePercentage),
            (true, Kind::SuccessRateLocalOrigin, Kind::FailurePercentageLocalOrigin),
        ];
        for (is_local, of_rate, of_share) in kinds.into_iter().filter(|(is_local, ..)| split || !is_local) {
            let rates = watched.monitors().map(|(endpoint, monitor)| {
                let rate = if is_local { &monitor.ways } else { &monitor.answers };
                (endpoint, monitor, rate.take())
            });
            let rates: Vec<_> = rates.filter(|(_, monitor, _)| !monitor.is_ejected()).collect();
            let numbers: Vec<(f64, u32)> = rates.iter().map(|(_, _, rate)| *rate).collect();
            let found = [
                (of_rate, below_the_others(&numbers, &watched.settings.success_rate)),
                (of_share, failing(&numbers, &watched.settings.failure_percentage)),
            ];
            for (kind, outliers) in found {
                for index in outliers {
                    let (endpoint, monitor, _) = rates[index];
                    events.extend(self.eject(watched, endpoint, monitor, kind, now, &mut random));
                }
            }
        }
        for (_, monitor) in watched.monitors().filter(|(_, monitor)| !monitor.is_ejected()) {
            let mut history = monitor.history();
            // Only one that has been well for an interval (Envoy's `onIntervalTimer`).
            let is_well = |since: Instant| now.saturating_duration_since(since) >= watched.settings.interval;
            if history.taken_back.is_none_or(is_well) {
                history.times = history.times.saturating_sub(1);
            }
        }
        events
    }
}

fn take_back(endpoint: &Arc<ClusterEndpoint>, monitor: &Monitor, now: Instant) -> Option<Event> {
    let mut history = monitor.history();
    history.ejected.take_if(|(_, until)| now >= *until)?;
    history.taken_back = Some(now);
    monitor.forget_what_was_in_a_row();
    monitor.is_ejected.store(false, Ordering::Relaxed);
    Some(Event {
        endpoint: endpoint.settings.address,
        action: Action::Uneject,
        ejections: history.ejections,
    })
}

/// Those whose rate is further below the mean than the deviation of all allows.
fn below_the_others(rates: &[(f64, u32)], settings: &SuccessRate) -> Vec<usize> {
    let with_enough = || (rates.iter().enumerate()).filter(|(_, (_, volume))| *volume >= settings.request_volume);
    let count = with_enough().count();
    if count == 0 || count < settings.minimum_hosts {
        return Vec::new();
    }
    let mean = with_enough().map(|(_, (rate, _))| rate).sum::<f64>() / count as f64;
    let squares = with_enough().map(|(_, (rate, _))| (rate - mean).powi(2)).sum::<f64>();
    let threshold = mean - f64::from(settings.stdev_factor) / 1000.0 * (squares / count as f64).sqrt();
    let below = with_enough().filter(|(_, (rate, _))| *rate < threshold);
    below.map(|(index, _)| index).collect()
}

/// Those of whose requests too many failed.
fn failing(rates: &[(f64, u32)], settings: &FailurePercentage) -> Vec<usize> {
    let with_enough = || (rates.iter().enumerate()).filter(|(_, (_, volume))| *volume >= settings.request_volume);
    let count = with_enough().count();
    if count == 0 || count < settings.minimum_hosts {
        return Vec::new();
    }
    let failing = with_enough().filter(|(_, (rate, _))| 100.0 - rate >= f64::from(settings.threshold));
    failing.map(|(index, _)| index).collect()
}
