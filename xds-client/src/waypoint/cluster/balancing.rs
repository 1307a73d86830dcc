//! How an endpoint is chosen: `lb_policy` and what goes with it.

use underpass_config::http::{HttpBalancing, MaglevTable, RingHash, SlowStart};

use super::super::refusal::{At, Refused, only_if};
use super::super::values::{duration, percent};
use crate::proto::envoy::config::cluster::v3::cluster as wire;
use crate::proto::envoy::config::core::v3::RuntimeDouble;
use wire::{LbConfig, LbPolicy};

/// Envoy's bounds (`RingHashLbConfig`, `MaglevLbConfig`).
const LARGEST_RING: u64 = 8 << 20;
const LARGEST_TABLE: u64 = 5_000_011;

pub(super) fn translate(policy: i32, config: Option<&LbConfig>) -> Result<(HttpBalancing, Option<SlowStart>), Refused> {
    let policy = LbPolicy::try_from(policy).map_err(|_| Refused::unsupported("lb_policy", policy))?;
    match (policy, config) {
        (LbPolicy::RoundRobin, None) => Ok((HttpBalancing::RoundRobin, None)),
        (LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let wire::RoundRobinLbConfig { slow_start_config } = config;
            let slow = slow_start_config.as_ref().map(slow_start).transpose();
            Ok((
                HttpBalancing::RoundRobin,
                slow.at("round_robin_lb_config.slow_start_config")?,
            ))
        }
        (LbPolicy::LeastRequest, None) => Ok((HttpBalancing::LeastRequest, None)),
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let wire::LeastRequestLbConfig { slow_start_config } = config;
            let slow = slow_start_config.as_ref().map(slow_start).transpose();
            Ok((
                HttpBalancing::LeastRequest,
                slow.at("least_request_lb_config.slow_start_config")?,
            ))
        }
        (LbPolicy::Random, None) => Ok((HttpBalancing::Random, None)),
        (LbPolicy::RingHash, None) => Ok((HttpBalancing::RingHash(RingHash::default()), None)),
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            let ring = ring(config).at("ring_hash_lb_config")?;
            Ok((HttpBalancing::RingHash(ring), None))
        }
        (LbPolicy::Maglev, None) => Ok((HttpBalancing::Maglev(MaglevTable::default()), None)),
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            let table = maglev(config).at("maglev_lb_config")?;
            Ok((HttpBalancing::Maglev(table), None))
        }
        (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig, _) => {
            Err(Refused::unsupported("lb_policy", policy.as_str_name()))
        }
        (_, Some(_)) => {
            let why = format!("is of another kind than `lb_policy`, which is {}", policy.as_str_name());
            Err(Refused::new("lb_config", why))
        }
    }
}

fn ring(config: &wire::RingHashLbConfig) -> Result<RingHash, Refused> {
    let wire::RingHashLbConfig {
        minimum_ring_size,
        maximum_ring_size,
        hash_function,
    } = config;
    let is_xx = *hash_function == wire::ring_hash_lb_config::HashFunction::XxHash as i32;
    only_if(is_xx, "hash_function", "is not XX_HASH, which is the only one here")?;
    let default = RingHash::default();
    let ring = RingHash {
        minimum_ring_size: minimum_ring_size.unwrap_or(default.minimum_ring_size),
        maximum_ring_size: maximum_ring_size.unwrap_or(default.maximum_ring_size),
    };
    only_if(
        ring.maximum_ring_size <= LARGEST_RING,
        "maximum_ring_size",
        "is above 8388608",
    )?;
    let is_within = ring.minimum_ring_size <= ring.maximum_ring_size;
    only_if(is_within, "minimum_ring_size", "is above the largest size")?;
    Ok(ring)
}

fn maglev(config: &wire::MaglevLbConfig) -> Result<MaglevTable, Refused> {
    let wire::MaglevLbConfig { table_size } = config;
    let size = table_size.unwrap_or(MaglevTable::default().table_size);
    let is_prime = |number: u64| {
        let divisors = (2..).take_while(|divisor| divisor * divisor <= number);
        number > 1 && divisors.into_iter().all(|divisor| !number.is_multiple_of(divisor))
    };
    let is_one = size <= LARGEST_TABLE && is_prime(size);
    only_if(is_one, "table_size", "is no prime number up to 5000011")?;
    Ok(MaglevTable { table_size: size })
}

fn slow_start(wire: &wire::SlowStartConfig) -> Result<SlowStart, Refused> {
    let wire::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    } = wire;
    let window = slow_start_window
        .as_ref()
        .ok_or_else(|| Refused::missing("slow_start_window"))?;
    let window = duration(window).at("slow_start_window")?;
    only_if(!window.is_zero(), "slow_start_window", "is 0")?;
    let aggression = aggression.as_ref().map_or(1.0, |told: &RuntimeDouble| {
        let RuntimeDouble {
            default_value,
            // There is no runtime here that could say another.
            runtime_key: _,
        } = told;
        *default_value
    });
    only_if(
        (0.001..=1000.0).contains(&aggression),
        "aggression",
        "is not between 0.001 and 1000",
    )?;
    let least = min_weight_percent.as_ref().map(percent).transpose();
    Ok(SlowStart {
        window,
        // At most a million.
        aggression: (aggression * 1000.0).round() as u32,
        minimum_percent: least.at("min_weight_percent")?.unwrap_or(10),
    })
}
