//! Which routes of a virtual host can match a path, found without looking at each of them.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::matching::PathMatch;
use super::route::Route;

/// Below this looking at each is as fast.
const FEW: usize = 8;

/// The routes of a virtual host by how the paths that they are for begin.
#[derive(Debug, Default)]
pub(super) struct PathIndex {
    /// Routes by their path, or by how it begins.
    beginnings: HashMap<Box<str>, Vec<u32>, RandomState>,
    /// How long those are, each once.
    lengths: Vec<usize>,
    /// Routes that have to be looked at for any path.
    others: Vec<u32>,
    routes: usize,
}

impl PathIndex {
    /// The index of `routes`, which are known by their places.
    pub(super) fn new<'r>(routes: impl ExactSizeIterator<Item = &'r Route>) -> Self {
        let mut index = Self {
            routes: routes.len(),
            ..Self::default()
        };
        if index.routes <= FEW {
            return index;
        }
        for (place, route) in (0..).zip(routes) {
            match beginning(route) {
                Some(text) => index.beginnings.entry(text.into()).or_default().push(place),
                None => index.others.push(place),
            }
        }
        index.lengths = index.beginnings.keys().map(|text| text.len()).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }

    /// The first place in the order of the routes, of those that can match `path`, for which `matches` holds.
    pub(super) fn first(&self, path: &str, matches: impl Fn(usize) -> bool) -> Option<usize> {
        if self.routes <= FEW {
            return (0..self.routes).find(|place| matches(*place));
        }
        let of_beginnings = self.lengths.iter().filter_map(|length| {
            let beginning = path.get(..*length)?;
            self.beginnings.get(beginning)
        });
        let mut lists: Vec<&[u32]> = of_beginnings.map(Vec::as_slice).collect();
        lists.push(&self.others);
        // Each list is in order: the next place is the least of their first ones.
        loop {
            let next = lists
                .iter_mut()
                .filter(|list| !list.is_empty())
                .min_by_key(|list| list[0])?;
            let place = next[0] as usize;
            *next = &next[1..];
            if matches(place) {
                return Some(place);
            }
        }
    }
}

/// How every path begins that the route can match, as it is written.
fn beginning(route: &Route) -> Option<&str> {
    match &route.matches.path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) | PathMatch::Segments(text)
            if route.matches.case_sensitive =>
        {
            Some(text)
        }
        _ => None,
    }
}
