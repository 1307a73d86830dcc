//! How a cluster's endpoints are chosen: `http.clusters[].balancing` and what belongs to it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::super::reading::{Path, Reading};
use super::super::scalar::Scalar;
use crate::Text;
use crate::http::{Fallback, HttpBalancing, Labels, MaglevTable, PeakEwma, RingHash, SlowStart, Subsets};

/// The fields of a cluster that say it.
#[derive(Debug, Default)]
pub(super) struct BalancingFields<'s, 'a> {
    pub(super) word: Option<&'s Scalar<'a>>,
    pub(super) ring_hash: Option<&'s RingHashShape<'a>>,
    pub(super) maglev: Option<&'s MaglevShape<'a>>,
    pub(super) peak_ewma: Option<&'s PeakEwmaShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RingHashShape<'a> {
    #[serde(borrow)]
    minimum_ring_size: Option<Scalar<'a>>,
    maximum_ring_size: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MaglevShape<'a> {
    #[serde(borrow)]
    table_size: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PeakEwmaShape<'a> {
    #[serde(borrow)]
    decay: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SlowStartShape<'a> {
    #[serde(borrow)]
    window: Option<Scalar<'a>>,
    aggression: Option<Scalar<'a>>,
    minimum_percent: Option<Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SubsetsShape<'a> {
    #[serde(borrow)]
    selectors: Vec<Vec<Scalar<'a>>>,
    fallback: Option<Scalar<'a>>,
    default: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

const BALANCING: [(&str, HttpBalancing); 6] = [
    ("round-robin", HttpBalancing::RoundRobin),
    ("least-request", HttpBalancing::LeastRequest),
    ("random", HttpBalancing::Random),
    (
        "peak-ewma",
        HttpBalancing::PeakEwma(PeakEwma {
            decay: Duration::from_secs(10),
        }),
    ),
    (
        "ring-hash",
        HttpBalancing::RingHash(RingHash {
            minimum_ring_size: 1024,
            maximum_ring_size: LARGEST_RING as u64,
        }),
    ),
    ("maglev", HttpBalancing::Maglev(MaglevTable { table_size: 65_537 })),
];
/// Envoy's (`RingHashLbConfig`).
const LARGEST_RING: u32 = 8 << 20;
/// Envoy's (`MaglevLbConfig`).
const LARGEST_TABLE: u32 = 5_000_011;
const PERCENT: RangeInclusive<u32> = 0..=100;
const WARMUP: Duration = Duration::from_secs(60);

impl BalancingFields<'_, '_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> HttpBalancing {
        let chosen = reading.choice(path.field("balancing"), self.word, &BALANCING);
        let balancing = chosen.unwrap_or_default();
        let given = [
            (
                "ring_hash",
                "ring-hash",
                self.ring_hash.is_some(),
                matches!(balancing, HttpBalancing::RingHash(_)),
            ),
            (
                "maglev",
                "maglev",
                self.maglev.is_some(),
                matches!(balancing, HttpBalancing::Maglev(_)),
            ),
            (
                "peak_ewma",
                "peak-ewma",
                self.peak_ewma.is_some(),
                matches!(balancing, HttpBalancing::PeakEwma(_)),
            ),
        ];
        for (field, word, is_given, is_meant) in given {
            if is_given && !is_meant {
                let remedy = format!("write `balancing: {word}` too, or remove it");
                reading.report(path.field(field), "", "belongs to another way of balancing", remedy);
            }
        }
        match balancing {
            HttpBalancing::RingHash(_) => self.ring(path.field("ring_hash"), reading),
            HttpBalancing::Maglev(_) => self.maglev(path.field("maglev"), reading),
            HttpBalancing::PeakEwma(default) => {
                let decay = self.peak_ewma.and_then(|shape| shape.decay.as_ref());
                let path = path.field("peak_ewma");
                HttpBalancing::PeakEwma(PeakEwma {
                    decay: reading.duration(path.field("decay"), decay, default.decay),
                })
            }
            plain => plain,
        }
    }

    fn ring(&self, path: Path<'_>, reading: &mut Reading) -> HttpBalancing {
        let default = RingHash::default();
        let mut size = |field, value: Option<&Scalar<'_>>, default| {
            let size = value.and_then(|value| reading.count(path.field(field), value, 1..=LARGEST_RING));
            size.map_or(default, u64::from)
        };
        let least = self.ring_hash.and_then(|shape| shape.minimum_ring_size.as_ref());
        let most = self.ring_hash.and_then(|shape| shape.maximum_ring_size.as_ref());
        let ring = RingHash {
            minimum_ring_size: size("minimum_ring_size", least, default.minimum_ring_size),
            maximum_ring_size: size("maximum_ring_size", most, default.maximum_ring_size),
        };
        if ring.minimum_ring_size > ring.maximum_ring_size {
            let value = least.map_or("", |value| value);
            let remedy = "make it at most `maximum_ring_size`";
            reading.report(
                path.field("minimum_ring_size"),
                value,
                "is above `maximum_ring_size`",
                remedy,
            );
        }
        HttpBalancing::RingHash(ring)
    }

    fn maglev(&self, path: Path<'_>, reading: &mut Reading) -> HttpBalancing {
        let value = self.maglev.and_then(|shape| shape.table_size.as_ref());
        let path = path.field("table_size");
        let size = value.and_then(|value| {
            let size = reading.count(path, value, 2..=LARGEST_TABLE)?;
            if !is_prime(size) {
                reading.report(path, value, "is not a prime number", "write one, for example 65537");
            }
            Some(size)
        });
        HttpBalancing::Maglev(size.map_or_else(MaglevTable::default, |size| MaglevTable {
            table_size: size.into(),
        }))
    }
}

fn is_prime(number: u32) -> bool {
    let mut divisors = (2..number).take_while(|divisor| divisor * divisor <= number);
    number > 1 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

impl SlowStartShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> SlowStart {
        let aggression = self.aggression.as_ref().map(|value| {
            let number = value
                .parse::<f64>()
                .ok()
                .filter(|number| (0.1..=100.0).contains(number));
            if number.is_none() {
                let remedy = "write a number from 0.1 to 100, for example 1.0";
                reading.report(path.field("aggression"), value, "is not a valid number here", remedy);
            }
            // At most 100 000.
            (number.unwrap_or(1.0) * 1000.0).round() as u32
        });
        let least = self.minimum_percent.as_ref();
        let least = least.and_then(|value| reading.count(path.field("minimum_percent"), value, PERCENT));
        SlowStart {
            window: reading.duration(path.field("window"), self.window.as_ref(), WARMUP),
            aggression: aggression.unwrap_or(1000),
            minimum_percent: least.unwrap_or(10),
        }
    }
}

impl SubsetsShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Subsets {
        const FALLBACKS: [(&str, u8); 3] = [("none", 0), ("any", 1), ("default", 2)];
        let selectors = path.field("selectors");
        let compiled = self.selectors.iter().enumerate().map(|(index, names)| {
            if names.is_empty() {
                let remedy = "write names of labels, for example [version]";
                reading.report(selectors.item(index), "", "makes no subset", remedy);
            }
            let mut names: Vec<Text> = names.iter().map(|name| reading.text(name)).collect();
            names.sort();
            names.dedup();
            names
        });
        let compiled: Vec<Vec<Text>> = compiled.collect();
        for (index, names) in compiled.iter().enumerate() {
            // Each of its subsets would have its endpoints twice.
            if let Some(first) = compiled[..index].iter().position(|other| other == names) {
                let problem = format!("selectors[{first}] is the same");
                reading.report(selectors.item(index), &names.join(", "), problem, "remove one");
            }
        }
        let default = labels(&self.default, reading);
        let word = reading.choice(path.field("fallback"), self.fallback.as_ref(), &FALLBACKS);
        if (word == Some(2)) == default.is_empty() {
            let remedy = "write both `fallback: default` and `default: {version: v1}`, or neither";
            reading.report(path.field("default"), "", "goes with `fallback: default`", remedy);
        }
        Subsets {
            selectors: compiled,
            fallback: match word {
                Some(1) => Fallback::Any,
                Some(2) => Fallback::Default(default),
                _ => Fallback::Nowhere,
            },
        }
    }
}

pub(super) fn labels(shape: &BTreeMap<Scalar<'_>, Scalar<'_>>, reading: &mut Reading) -> Labels {
    let labels = shape
        .iter()
        .map(|(name, value)| (reading.text(name), reading.text(value)));
    Labels::new(labels)
}
