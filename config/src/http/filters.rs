//! What requests go through before they are routed (Envoy's HTTP filters that may turn one away), in their order.

use std::sync::Arc;

use super::{ExtAuthz, Jwt, LocalRateLimit, Rbac};

/// One of them.
#[derive(Clone, Debug)]
pub enum Filter {
    /// So many pass.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Whose tokens they come with.
    Jwt(Jwt),
    /// Rules on who may ask for what.
    Rbac(Rbac),
    /// Someone else is asked.
    ExtAuthz(ExtAuthz),
    /// Nothing: only some routes have something at this place ([`super::Overrides`]).
    OfRoutes,
}

impl Filter {
    /// Takes over what `before`, which was at the same place of the same table, has counted.
    pub(super) fn continues(&mut self, before: &Self) {
        if let (Self::LocalRateLimit(limit), Self::LocalRateLimit(old)) = (self, before)
            && limit.is_as(old)
        {
            *limit = old.clone();
        }
    }
}
