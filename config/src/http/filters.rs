//! What requests go through before they are routed (Envoy's HTTP filters that may turn one away), in their order.

use super::{Jwt, Rbac};

/// One of them.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Whose tokens they come with.
    Jwt(Jwt),
    /// Rules on who may ask for what.
    Rbac(Rbac),
}
