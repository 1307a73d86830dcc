//! Consistent hashing: a request's hash leads to an endpoint, and few of all hashes lead elsewhere when an endpoint comes or goes. Tables, hashes and their
//! order are Envoy's (`RingHashLoadBalancer`, `MaglevLoadBalancer`), so that beside one another both lead a client to the same endpoint.

use twox_hash::XxHash64;

/// One endpoint of a table.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is known by: its address.
    pub key: String,
    /// Its share, of any sum.
    pub weight: f64,
}

/// Envoy's hash of text.
pub fn hash(text: &[u8]) -> u64 {
    seeded(0, text)
}

/// The same, from what was hashed before it.
pub fn seeded(seed: u64, text: &[u8]) -> u64 {
    XxHash64::oneshot(seed, text)
}

/// A ring: each endpoint has many places on it, and a hash leads to the next place.
#[derive(Debug)]
pub struct Ring(Vec<(u64, u32)>);

impl Ring {
    /// Of `smallest` places at least, as many as give each member its share, and `largest` at most.
    pub fn new(members: &[Member], smallest: u64, largest: u64) -> Self {
        let sum: f64 = members.iter().map(|member| member.weight).sum();
        let least = members
            .iter()
            .map(|member| member.weight / sum)
            .fold(f64::INFINITY, f64::min);
        if members.is_empty() || !least.is_finite() || least <= 0.0 {
            return Self(Vec::new());
        }
        let scale = ((least * smallest as f64).ceil() / least).min(largest as f64);
        let mut places = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        for (index, member) in (0..).zip(members) {
            target += scale * member.weight / sum;
            let mut copy = 0u64;
            while current < target {
                places.push((hash(format!("{}_{copy}", member.key).as_bytes()), index));
                copy += 1;
                current += 1.0;
            }
        }
        places.sort_by_key(|(hash, _)| *hash);
        Self(places)
    }

    /// The members from a hash on, as they lie on the ring.
    pub fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = self.0.partition_point(|(place, _)| *place < hash);
        let around = self.0[start..].iter().chain(&self.0[..start]);
        around.map(|(_, member)| *member as usize)
    }
}

/// A table that has a member at each of its places, all within one place of their shares (Eisenbud et al., "Maglev", NSDI 2016).
#[derive(Debug)]
pub struct Maglev(Vec<u32>);

struct Filling {
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
    member: u32,
}

impl Maglev {
    /// Of `size` places, a prime number.
    pub fn new(members: &[Member], size: u64) -> Self {
        const NOBODY: u32 = u32::MAX;
        let largest = members.iter().map(|member| member.weight).fold(0.0, f64::max);
        if largest <= 0.0 {
            return Self(Vec::new());
        }
        let filling = (0..).zip(members).map(|(member, of)| Filling {
            offset: hash(of.key.as_bytes()) % size,
            skip: seeded(1, of.key.as_bytes()) % (size - 1) + 1,
            weight: of.weight,
            target: 0.0,
            next: 0,
            member,
        });
        let mut filling: Vec<Filling> = filling.collect();
        filling.sort_by(|a, b| members[a.member as usize].key.cmp(&members[b.member as usize].key));
        let mut places = vec![NOBODY; size as usize];
        let (mut filled, mut round) = (0, 0.0);
        while filled < size {
            round += 1.0;
            for entry in &mut filling {
                if filled == size || round * entry.weight < entry.target {
                    continue;
                }
                entry.target += largest;
                let place = loop {
                    let place = ((entry.offset + entry.skip * entry.next) % size) as usize;
                    entry.next += 1;
                    if places[place] == NOBODY {
                        break place;
                    }
                };
                places[place] = entry.member;
                filled += 1;
            }
        }
        Self(places)
    }

    /// The member for a hash, then others, each for another try.
    pub fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let size = self.0.len() as u64;
        // As Envoy changes it for a retry: most bits at once.
        (0..size).map(move |attempt| {
            let changed = match attempt {
                0 => hash,
                attempt => hash ^ (u64::MAX - attempt + 1),
            };
            self.0[(changed % size) as usize] as usize
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: impl IntoIterator<Item = u32>) -> Vec<Member> {
        let of = |(n, weight): (usize, u32)| Member {
            key: format!("10.0.{}.{}:80", n / 250, n % 250 + 1),
            weight: f64::from(weight),
        };
        weights.into_iter().enumerate().map(of).collect()
    }

    type Choose = Box<dyn Fn(u64) -> String>;

    fn tables(members: Vec<Member>) -> [(&'static str, Choose); 2] {
        let (ring, maglev) = (Ring::new(&members, 1024, 8 << 20), Maglev::new(&members, 65_537));
        let keys: Vec<String> = members.into_iter().map(|member| member.key).collect();
        let also = keys.clone();
        [
            (
                "ring",
                Box::new(move |hash| keys[ring.from(hash).next().unwrap()].clone()),
            ),
            (
                "maglev",
                Box::new(move |hash| also[maglev.from(hash).next().unwrap()].clone()),
            ),
        ]
    }

    #[test]
    fn when_an_endpoint_goes_few_hashes_lead_elsewhere() {
        const KEYS: u64 = 20_000;
        let hashes: Vec<u64> = (0..KEYS).map(|key| hash(key.to_string().as_bytes())).collect();
        for (before, after) in tables(members([1; 20])).into_iter().zip(tables(members([1; 19]))) {
            let gone = "10.0.0.20:80";
            let moved = hashes.iter().filter(|hash| before.1(**hash) != after.1(**hash)).count();
            let had = hashes.iter().filter(|hash| before.1(**hash) == gone).count();
            assert!(had > 0 && moved >= had, "{}", before.0);
            // A twentieth had to. Some others move too: a ring's endpoints have a few more places where they are fewer, Maglev's fill what became free.
            let most = had + KEYS as usize / 20;
            assert!(moved <= most, "{}: {moved} of {KEYS}, {had} had to", before.0);
        }
    }

    #[test]
    fn each_endpoint_has_its_share() {
        const KEYS: u64 = 30_000;
        for (name, choose) in tables(members([1, 2, 3])) {
            let mut counts = std::collections::BTreeMap::<String, f64>::new();
            for key in 0..KEYS {
                *counts.entry(choose(hash(key.to_string().as_bytes()))).or_default() += 1.0;
            }
            for (count, share) in counts.values().zip([1.0, 2.0, 3.0]) {
                let expected = KEYS as f64 * share / 6.0;
                let slack = if name == "ring" { 0.25 } else { 0.05 };
                assert!((count / expected - 1.0).abs() < slack, "{name}: {counts:?}");
            }
        }
    }

    #[test]
    fn other_tries_come_to_other_endpoints() {
        let members = members([1; 5]);
        let ring = Ring::new(&members, 1024, 8 << 20);
        let maglev = Maglev::new(&members, 65_537);
        for key in 0..100u64 {
            let hash = hash(&key.to_be_bytes());
            let around: std::collections::BTreeSet<usize> = ring.from(hash).collect();
            let also: std::collections::BTreeSet<usize> = maglev.from(hash).take(200).collect();
            assert_eq!((around.len(), also.len()), (5, 5));
        }
    }

    #[test]
    fn nobody_is_no_table() {
        assert_eq!(Ring::new(&[], 1024, 2048).from(7).next(), None);
        assert_eq!(Maglev::new(&[], 65_537).from(7).next(), None);
        assert!(Ring::new(&members([1; 3]), 1, 1).from(0).next().is_some());
    }
}
