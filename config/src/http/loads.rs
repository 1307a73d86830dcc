//! How requests are shared out among priorities, and when ejections are disregarded (Envoy's `LoadBalancerBase`).
//!
//! A priority gets requests as far as its endpoints are well; what it can't take goes to the next. It may lose some endpoints before that begins: each is reckoned
//! to take 1.4 times its share. Where fewer of a priority's endpoints are well than the panic threshold, and all priorities together can't take everything, its
//! requests go to all of its endpoints: those that are left would only be the next to fall.

/// `overprovisioning_factor`, in percent. Envoy's default.
const OVERPROVISIONING: u64 = 140;

/// How many endpoints there are, and how many are well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Those that are not ejected.
    pub well: usize,
    /// All.
    pub all: usize,
}

impl Health {
    /// How much of its requests a group of endpoints can take, in percent.
    pub fn availability(self) -> u64 {
        match self.all {
            0 => 0,
            all => (OVERPROVISIONING * self.well as u64 / all as u64).min(100),
        }
    }

    /// The same in parts of a million: one of many that is well is more than nothing.
    pub fn parts(self) -> u64 {
        match self.all {
            0 => 0,
            all => (OVERPROVISIONING * 10_000 * self.well as u64 / all as u64).min(1_000_000),
        }
    }

    fn is_below(self, threshold: u32) -> bool {
        (self.well as u64 * 100) < u64::from(threshold) * self.all as u64
    }
}

/// What one priority gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of all requests, in percent.
    pub percent: u32,
    /// Whether ejected endpoints get requests as others do.
    pub is_panicking: bool,
}

/// The loads of priorities, the first first. They come to 100 if any endpoint is to have requests.
pub fn loads(priorities: &[Health], panic_threshold: u32) -> Vec<Load> {
    let available: Vec<u64> = priorities.iter().map(|health| health.availability()).collect();
    let total: u64 = available.iter().sum::<u64>().min(100);
    let is_panicking = |health: &Health| total < 100 && health.is_below(panic_threshold);
    let mut loads: Vec<Load> = priorities
        .iter()
        .map(|health| Load {
            percent: 0,
            is_panicking: is_panicking(health),
        })
        .collect();
    // Where there is nobody at all nothing panics, but nothing else is left for the others to do either.
    let is_panic = (priorities.iter().zip(&loads)).all(|(health, load)| load.is_panicking || health.all == 0);
    match (total, is_panic && panic_threshold > 0) {
        (_, true) => share_out_by_size(priorities, &mut loads),
        (0, false) => {}
        (total, false) => share_out_by_health(&available, total, &mut loads),
    }
    loads
}

fn share_out_by_health(available: &[u64], total: u64, loads: &mut [Load]) {
    let mut left = 100;
    for (load, available) in loads.iter_mut().zip(available) {
        load.percent = left.min((available * 100 / total) as u32);
        left -= load.percent;
    }
    // What rounding has left.
    let first = loads.iter_mut().find(|load| load.percent > 0);
    if let Some(first) = first {
        first.percent += left;
    }
}

fn share_out_by_size(priorities: &[Health], loads: &mut [Load]) {
    let all: usize = priorities.iter().map(|health| health.all).sum();
    if all == 0 {
        return;
    }
    let mut left = 100;
    for (load, health) in loads.iter_mut().zip(priorities) {
        load.percent = (100 * health.all / all) as u32;
        load.is_panicking = true;
        left -= load.percent;
    }
    let first = (loads.iter_mut().zip(priorities)).find(|(_, health)| health.all > 0);
    if let Some((first, _)) = first {
        first.percent += left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (well, all) of each priority, the threshold, and what comes of it: percent, with a star in panic.
    fn check(priorities: &[(usize, usize)], threshold: u32, expected: &[&str]) {
        let health: Vec<Health> = priorities.iter().map(|&(well, all)| Health { well, all }).collect();
        let written = loads(&health, threshold).into_iter().map(|load| {
            let star = if load.is_panicking { "*" } else { "" };
            format!("{}{star}", load.percent)
        });
        assert_eq!(written.collect::<Vec<_>>(), expected, "{priorities:?}");
    }

    /// The table in Envoy's documentation (`upstream/load_balancing/priority`, `panic_threshold`), and its corners.
    #[test]
    fn requests_are_shared_out_as_envoy_documents_it() {
        check(&[(100, 100), (100, 100)], 50, &["100", "0"]);
        check(&[(72, 100), (100, 100)], 50, &["100", "0"]);
        check(&[(71, 100), (71, 100)], 50, &["99", "1"]);
        check(&[(50, 100), (60, 100)], 50, &["70", "30"]);
        check(&[(25, 100), (100, 100)], 50, &["35", "65"]);
        check(&[(0, 100), (100, 100)], 50, &["0", "100"]);
        check(&[(5, 100), (65, 100)], 50, &["8*", "92"]);
        check(&[(25, 100), (25, 100)], 50, &["50*", "50*"]);
        check(&[(0, 100), (0, 300)], 50, &["25*", "75*"]);
        check(&[(0, 3), (0, 0)], 50, &["100*", "0*"]);
        check(&[(0, 3), (0, 3)], 0, &["0", "0"]);
        check(&[(1, 3), (0, 3)], 0, &["100", "0"]);
        check(&[(0, 0), (2, 2)], 50, &["0", "100"]);
        check(&[(0, 0)], 50, &["0"]);
        check(&[(1, 100)], 50, &["100*"]);
    }
}
