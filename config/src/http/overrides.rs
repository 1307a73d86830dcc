//! What a route has in the place of its table's filters (Envoy's `typed_per_filter_config`).
//!
//! A filter is told by its place in its table. A route's own word counts before its virtual host's, and that before the table's; what nobody says anything of stays as the
//! table has it.

use std::sync::Arc;

use super::{LocalRateLimit, Rbac};
use crate::Text;

/// What is different for one filter.
#[derive(Clone, Debug)]
pub enum Override {
    /// It does nothing here.
    Off,
    /// So many pass here. Routes of one virtual host that say nothing themselves share its bucket.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// These rules decide here.
    Rbac(Arc<Rbac>),
    /// What an authorization server is told besides of requests from here (`context_extensions`).
    Context(Arc<[(Text, Text)]>),
}

/// What is different for some filters, by their place.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<(usize, Override)>);

impl Overrides {
    /// These, of which no two have the same place.
    pub fn new(overrides: Vec<(usize, Override)>) -> Self {
        Self(overrides)
    }

    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is different for the filter at `place`.
    pub fn at(&self, place: usize) -> Option<&Override> {
        let found = self.0.iter().find(|(own, _)| *own == place);
        found.map(|(_, different)| different)
    }

    /// All, with their places.
    pub fn iter(&self) -> impl Iterator<Item = &(usize, Override)> {
        self.0.iter()
    }

    /// These, and those of `general` that nothing is said of here.
    #[must_use]
    pub fn over(mut self, general: &Self) -> Self {
        for (place, different) in general.iter() {
            if self.at(*place).is_none() {
                self.0.push((*place, different.clone()));
            }
        }
        self
    }

    /// Takes over what `before` has counted, which was the same route's.
    pub(super) fn continues(&mut self, before: &Self) {
        for (place, different) in &mut self.0 {
            if let (Override::LocalRateLimit(limit), Some(Override::LocalRateLimit(old))) =
                (different, before.at(*place))
                && limit.is_as(old)
            {
                *limit = old.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_more_specifically_counts() {
        let of_host = Overrides::new(vec![(0, Override::Off), (2, Override::Context(Arc::default()))]);
        let of_route = Overrides::new(vec![(0, Override::Context(Arc::default()))]);
        let both = of_route.over(&of_host);
        assert!(matches!(both.at(0), Some(Override::Context(_))));
        assert!(matches!(both.at(2), Some(Override::Context(_))));
        assert!(both.at(1).is_none());
    }
}
