//! What a choice of an endpoint looks at: made when endpoints change or are ejected, so that a choice is a look-up, without a lock or an allocation.
//!
//! From the outside in: a set (all endpoints, or those of a subset) has levels, which are its priorities with what each gets; a level has groups, which are its
//! localities where those have weights, else one; a group has a line of endpoints, each as long as its weight.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use foldhash::quality::RandomState;

use super::loads::{Health, Load, loads};
use super::ring::{Maglev, Member, Ring};
use super::{ClusterEndpoint, ClusterSettings, Fallback, HttpBalancing, Labels, SlowStart};
use crate::Text;

type Endpoints = Vec<Arc<ClusterEndpoint>>;

/// What a request asks of the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Endpoints that earlier tries went to: not one of these, while there is another.
    pub tried: &'a [SocketAddr],
    /// What its hash policies make of it.
    pub hash: Option<u64>,
    /// The subset that it is for.
    pub labels: Option<&'a Labels>,
    /// Where it is going, and by which name that was found: its endpoint, where the cluster has none of its own.
    pub at: Option<(SocketAddr, Option<&'a Text>)>,
}

/// All that a cluster chooses from.
#[derive(Debug)]
pub(super) struct Table {
    /// Of which changes of endpoints' health it knows.
    pub generation: u64,
    whole: Set,
    subsets: HashMap<Labels, Set, RandomState>,
    fallback: Option<Set>,
}

impl Table {
    /// One that knows of nothing.
    pub fn empty() -> Self {
        Self {
            generation: u64::MAX,
            whole: Set(Vec::new()),
            subsets: HashMap::default(),
            fallback: None,
        }
    }

    /// Of these endpoints as they are now. `turn` is whose turn it is.
    pub fn new(
        settings: &ClusterSettings,
        endpoints: &[Arc<ClusterEndpoint>],
        turn: &Arc<AtomicU32>,
        generation: u64,
    ) -> Self {
        let mut by_labels: HashMap<Labels, Endpoints, RandomState> = HashMap::default();
        let selectors = settings.subsets.iter().flat_map(|subsets| &subsets.selectors);
        for selector in selectors {
            for endpoint in endpoints {
                if let Some(labels) = endpoint.settings.labels.restricted_to(selector) {
                    by_labels.entry(labels).or_default().push(endpoint.clone());
                }
            }
        }
        let own_turn = || Arc::new(AtomicU32::new(turn.load(Ordering::Relaxed)));
        let fallback = match settings.subsets.as_ref().map(|subsets| &subsets.fallback) {
            Some(Fallback::Default(wanted)) => {
                let chosen = endpoints
                    .iter()
                    .filter(|endpoint| endpoint.settings.labels.have(wanted));
                Some(Set::new(settings, &chosen.cloned().collect::<Endpoints>(), own_turn))
            }
            _ => None,
        };
        let subsets = by_labels.into_iter();
        Self {
            generation,
            whole: Set::new(settings, endpoints, || turn.clone()),
            subsets: subsets
                .map(|(labels, endpoints)| (labels, Set::new(settings, &endpoints, own_turn)))
                .collect(),
            fallback,
        }
    }

    /// The endpoint for a request. `random` gives any numbers.
    pub fn choose(
        &self,
        settings: &ClusterSettings,
        wish: &Wish<'_>,
        random: impl FnMut() -> u32,
    ) -> Option<&Arc<ClusterEndpoint>> {
        let set = match &settings.subsets {
            None => &self.whole,
            Some(subsets) => {
                let of_labels = wish.labels.and_then(|labels| self.subsets.get(labels));
                match (of_labels, &subsets.fallback) {
                    (Some(set), _) => set,
                    (None, Fallback::Nowhere) => return None,
                    (None, Fallback::Any) => &self.whole,
                    (None, Fallback::Default(_)) => self.fallback.as_ref()?,
                }
            }
        };
        set.choose(settings, wish, random)
    }
}

/// What a priority of a cluster gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityLoad {
    /// Its number.
    pub priority: u32,
    /// Of all requests, in percent.
    pub percent: u32,
    /// Whether so few of its endpoints are well that ejections are disregarded.
    pub is_panicking: bool,
}

/// The priorities of some endpoints, with what each gets and has.
pub(super) fn priorities(
    settings: &ClusterSettings,
    endpoints: &[Arc<ClusterEndpoint>],
) -> Vec<(PriorityLoad, Endpoints)> {
    // Numbers may have gaps, which are no priorities.
    let mut by_number: BTreeMap<u32, Endpoints> = BTreeMap::new();
    for endpoint in endpoints {
        by_number
            .entry(endpoint.settings.priority)
            .or_default()
            .push(endpoint.clone());
    }
    let health: Vec<Health> = by_number.values().map(|endpoints| health(endpoints)).collect();
    let loads = loads(&health, settings.panic_threshold);
    let of_number = |((priority, endpoints), load): ((u32, Endpoints), Load)| {
        let load = PriorityLoad {
            priority,
            percent: load.percent,
            is_panicking: load.is_panicking,
        };
        (load, endpoints)
    };
    by_number.into_iter().zip(loads).map(of_number).collect()
}

/// Endpoints that a request may go to: the levels that get any.
#[derive(Debug)]
struct Set(Vec<Level>);

impl Set {
    fn new(settings: &ClusterSettings, endpoints: &[Arc<ClusterEndpoint>], turn: impl Fn() -> Arc<AtomicU32>) -> Self {
        let priorities = priorities(settings, endpoints).into_iter();
        let levels = priorities
            .filter(|(load, _)| load.percent > 0)
            .map(|(load, endpoints)| {
                let localities = match load.is_panicking {
                    true => Vec::new(),
                    false => by_locality(settings, &endpoints),
                };
                let localities = match (localities.is_empty(), load.is_panicking) {
                    (false, _) => localities,
                    (true, true) => vec![Locality::only(endpoints)],
                    (true, false) => vec![Locality::only(well(&endpoints))],
                };
                Level::new(settings, load.percent, localities, &turn)
            });
        Self(levels.filter(|level| !level.members.is_empty()).collect())
    }

    fn choose(
        &self,
        settings: &ClusterSettings,
        wish: &Wish<'_>,
        mut random: impl FnMut() -> u32,
    ) -> Option<&Arc<ClusterEndpoint>> {
        let level = match &self.0[..] {
            [] => return None,
            [only] => only,
            several => {
                // As with Envoy: who is not sent to an endpoint by its hash is not to a priority either.
                let hash = wish.hash.filter(|_| settings.balancing.is_consistent());
                let point = hash.unwrap_or_else(|| u64::from(random())) % 100;
                at_percent(several, point as u32)
            }
        };
        let chosen = level.choose(settings, wish, random)?;
        let is_new = |endpoint: &&Arc<ClusterEndpoint>| !wish.tried.contains(&endpoint.settings.address);
        if wish.tried.is_empty() || is_new(&chosen) {
            return Some(chosen);
        }
        // The next in the list, from the chosen one on: a retry is rare, and its load is spread as the choices are.
        let start = level.members.iter().position(|endpoint| Arc::ptr_eq(endpoint, chosen));
        let (before, after) = level.members.split_at(start.unwrap_or_default());
        let elsewhere = self.0.iter().flat_map(|level| &level.members);
        let other = after.iter().chain(before).chain(elsewhere).find(is_new);
        other.or(Some(chosen))
    }
}

fn at_percent(levels: &[Level], mut point: u32) -> &Level {
    for level in levels {
        match point.checked_sub(level.percent) {
            None => return level,
            Some(rest) => point = rest,
        }
    }
    &levels[levels.len() - 1]
}

fn health(endpoints: &[Arc<ClusterEndpoint>]) -> Health {
    Health {
        well: endpoints.iter().filter(|endpoint| endpoint.is_well()).count(),
        all: endpoints.len(),
    }
}

fn well(endpoints: &[Arc<ClusterEndpoint>]) -> Endpoints {
    let well = endpoints.iter().filter(|endpoint| endpoint.is_well());
    well.cloned().collect()
}

#[derive(Debug)]
struct Level {
    percent: u32,
    members: Endpoints,
    /// By which of the groups a request goes, where there are several.
    which: Line,
    groups: Vec<Group>,
    consistent: Option<Consistent>,
}

#[derive(Debug)]
enum Consistent {
    Ring(Ring),
    Maglev(Maglev),
}

impl Level {
    fn new(
        settings: &ClusterSettings,
        percent: u32,
        localities: Vec<Locality>,
        turn: &impl Fn() -> Arc<AtomicU32>,
    ) -> Self {
        // In the order in which the members of a ring are counted.
        let members = localities.iter().flat_map(|locality| &locality.well).cloned().collect();
        let weights: Vec<u64> = localities.iter().map(|locality| locality.effective_weight).collect();
        let consistent = consistent(settings.balancing, &localities);
        let several = localities.len() > 1;
        let groups = localities.into_iter().map(|locality| {
            let turn = match several {
                true => Arc::new(AtomicU32::new(turn().load(Ordering::Relaxed))),
                false => turn(),
            };
            Group::new(locality.well, turn, settings.slow_start)
        });
        Self {
            percent,
            members,
            which: Line::new(&weights, turn()),
            groups: groups.collect(),
            consistent,
        }
    }

    fn choose(
        &self,
        settings: &ClusterSettings,
        wish: &Wish<'_>,
        mut random: impl FnMut() -> u32,
    ) -> Option<&Arc<ClusterEndpoint>> {
        if let Some(consistent) = &self.consistent {
            let hash = wish
                .hash
                .unwrap_or_else(|| u64::from(random()) << 32 | u64::from(random()));
            return self.by_hash(consistent, hash, wish.tried);
        }
        let group = match &self.groups[..] {
            [only] => only,
            several => &several[self.which.at_turn()],
        };
        group.choose(settings, random)
    }

    fn by_hash(&self, consistent: &Consistent, hash: u64, tried: &[SocketAddr]) -> Option<&Arc<ClusterEndpoint>> {
        let is_new = |index: &usize| !tried.contains(&self.members[*index].settings.address);
        // Others are found soon, or there are none.
        let most = self.members.len().saturating_mul(64);
        let (first, other) = match consistent {
            Consistent::Ring(ring) => (ring.from(hash).next(), ring.from(hash).take(most).find(is_new)),
            Consistent::Maglev(table) => (table.from(hash).next(), table.from(hash).take(most).find(is_new)),
        };
        other.or(first).map(|index| &self.members[index])
    }
}

/// The endpoints of one place that get requests.
#[derive(Debug)]
struct Locality {
    weight: u32,
    /// Less, where few of its endpoints are well: what is chosen by turn or at random goes by it. A ring would be another with each that is ejected.
    effective_weight: u64,
    well: Endpoints,
}

impl Locality {
    /// Where it doesn't matter where endpoints are.
    fn only(endpoints: Endpoints) -> Self {
        Self {
            weight: 1,
            effective_weight: 1,
            well: endpoints,
        }
    }
}

/// The localities of a level's `endpoints` that have a weight. Nothing where localities have none.
fn by_locality(settings: &ClusterSettings, endpoints: &[Arc<ClusterEndpoint>]) -> Vec<Locality> {
    let localities = settings.localities.iter().filter_map(|(name, weight)| {
        let is_here = |endpoint: &&Arc<ClusterEndpoint>| endpoint.settings.locality == *name;
        let here: Endpoints = endpoints.iter().filter(is_here).cloned().collect();
        let well = well(&here);
        let effective_weight = u64::from(*weight) * health(&here).parts();
        (!well.is_empty()).then_some(Locality {
            weight: *weight,
            effective_weight,
            well,
        })
    });
    localities.collect()
}

fn consistent(balancing: HttpBalancing, localities: &[Locality]) -> Option<Consistent> {
    let members = || {
        let members = localities.iter().flat_map(|Locality { weight, well, .. }| {
            let sum: f64 = well.iter().map(|endpoint| f64::from(endpoint.settings.weight)).sum();
            well.iter().map(move |endpoint| Member {
                key: endpoint.settings.address.to_string(),
                weight: f64::from(*weight) * f64::from(endpoint.settings.weight) / sum,
            })
        });
        members.collect::<Vec<_>>()
    };
    match balancing {
        HttpBalancing::RingHash(ring) => {
            let table = Ring::new(&members(), ring.minimum_ring_size, ring.maximum_ring_size);
            Some(Consistent::Ring(table))
        }
        HttpBalancing::Maglev(maglev) => Some(Consistent::Maglev(Maglev::new(&members(), maglev.table_size))),
        _ => None,
    }
}

#[derive(Debug)]
struct Group {
    endpoints: Endpoints,
    line: Line,
    /// Until when some of its endpoints are new.
    warms_until: Option<Instant>,
}

/// Endpoints that are drawn before one is taken though it is new.
const DRAWS: u32 = 32;

impl Group {
    fn new(endpoints: Endpoints, turn: Arc<AtomicU32>, slow_start: Option<SlowStart>) -> Self {
        let weights: Vec<u64> = endpoints
            .iter()
            .map(|endpoint| endpoint.settings.weight.into())
            .collect();
        let until = |slow: SlowStart| {
            endpoints
                .iter()
                .filter_map(move |endpoint| endpoint.born().checked_add(slow.window))
                .max()
        };
        Self {
            warms_until: slow_start.and_then(until),
            line: Line::new(&weights, turn),
            endpoints,
        }
    }

    fn choose(&self, settings: &ClusterSettings, mut random: impl FnMut() -> u32) -> Option<&Arc<ClusterEndpoint>> {
        if self.endpoints.len() < 2 {
            return self.endpoints.first();
        }
        let warming = self.warming(settings);
        let mut draw = |place: &dyn Fn(&mut dyn FnMut() -> u32) -> usize| {
            let mut drawn = &self.endpoints[place(&mut random)];
            let Some((slow, now)) = warming else { return drawn };
            // One that is new is taken as often as it may be, so that each is chosen by its weight times its share.
            for _ in 0..DRAWS {
                let share = slow.share(now.saturating_duration_since(drawn.born()));
                if share >= 1.0 || f64::from(random()) < share * f64::from(u32::MAX) {
                    break;
                }
                drawn = &self.endpoints[place(&mut random)];
            }
            drawn
        };
        let any = |random: &mut dyn FnMut() -> u32| self.line.at_random(random);
        Some(match settings.balancing {
            HttpBalancing::RoundRobin => draw(&|_| self.line.at_turn()),
            HttpBalancing::LeastRequest => {
                let (one, other) = (draw(&any), draw(&any));
                // For their weights: what is drawn by weight has as much more to do.
                let load = |of: &ClusterEndpoint, than: &ClusterEndpoint| {
                    (u64::from(of.active()) + 1) * u64::from(than.settings.weight)
                };
                if load(other, one) < load(one, other) {
                    other
                } else {
                    one
                }
            }
            HttpBalancing::PeakEwma(peak) => {
                let (one, other) = (draw(&any), draw(&any));
                if other.cost(peak.decay) < one.cost(peak.decay) {
                    other
                } else {
                    one
                }
            }
            HttpBalancing::Random | HttpBalancing::RingHash(_) | HttpBalancing::Maglev(_) => draw(&any),
        })
    }

    fn warming(&self, settings: &ClusterSettings) -> Option<(SlowStart, Instant)> {
        let (slow, until) = (settings.slow_start?, self.warms_until?);
        let is_slow = matches!(
            settings.balancing,
            HttpBalancing::RoundRobin | HttpBalancing::LeastRequest
        );
        let now = Instant::now();
        (is_slow && now < until).then_some((slow, now))
    }
}

/// Places, of which each of some weights has as many.
#[derive(Debug)]
struct Line {
    /// Where each ends; empty if all weigh the same.
    ends: Vec<u64>,
    count: usize,
    total: u64,
    /// How far it is from one turn to the next: so that turns of one weight don't come in a row, and each place has its turn.
    step: u64,
    turn: Arc<AtomicU32>,
}

impl Line {
    fn new(weights: &[u64], turn: Arc<AtomicU32>) -> Self {
        let is_even = weights.windows(2).all(|two| two[0] == two[1]);
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let ends: Vec<u64> = weights
            .iter()
            .scan(0, |sum, weight| {
                *sum += weight / divisor;
                Some(*sum)
            })
            .collect();
        let total = ends.last().copied().unwrap_or_default().max(1);
        Self {
            step: if is_even { 1 } else { step(total) },
            ends: if is_even { Vec::new() } else { ends },
            count: weights.len().max(1),
            total,
            turn,
        }
    }

    fn at_turn(&self) -> usize {
        let turn = u64::from(self.turn.fetch_add(1, Ordering::Relaxed));
        match self.ends.is_empty() {
            true => (turn % self.count as u64) as usize,
            // Both are below the total, which is below 2⁶⁴.
            false => self.at((u128::from(turn % self.total) * u128::from(self.step) % u128::from(self.total)) as u64),
        }
    }

    fn at_random(&self, random: &mut dyn FnMut() -> u32) -> usize {
        let drawn = match u32::try_from(self.total) {
            Ok(_) => u64::from(random()),
            Err(_) => u64::from(random()) << 32 | u64::from(random()),
        };
        match self.ends.is_empty() {
            true => (drawn % self.count as u64) as usize,
            false => self.at(drawn % self.total),
        }
    }

    fn at(&self, place: u64) -> usize {
        self.ends.partition_point(|end| *end <= place)
    }
}

/// A number about 0.618 times `total` (the golden section spreads most evenly) that has no divisor with it in common.
fn step(total: u64) -> u64 {
    let golden = ((total as f64 * 0.618_034) as u64).max(1);
    let near = (golden..total).chain((1..golden).rev());
    near.into_iter().find(|step| gcd(*step, total) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// Names of localities that have weights.
pub type LocalityWeights = Vec<(Text, u32)>;
