//! What requests go through before they are routed (Envoy's HTTP filters that may turn one away), in their order.

use super::Rbac;

/// One of them.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Rules on who may ask for what.
    Rbac(Rbac),
}
