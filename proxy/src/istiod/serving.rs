//! What a waypoint serves, put in force.
//!
//! Files that a cluster's TLS wants are read before; one that can't be is the affair of its cluster's requests, not of the others. What certificates are wanted is held
//! before the first request wants one, and let go when nothing does.

use std::sync::Arc;

use underpass_config::{Config, Touched};
use underpass_xds_client::waypoint::Told;

use crate::node::Node;

/// Puts `told` in force, of which what is as `before` stays as it is.
pub(super) fn put_in_force(node: &Arc<Node>, told: &Told, before: &Told) {
    let found = node.snapshot();
    let http = told.http(found.config.node.own_identity(), before, &found.config.http);
    if let Err(not_ready) = node.http.originations.prepare(&http) {
        tracing::error!(%not_ready, "requests to this cluster fail until its files can be used");
    }
    let next = Config {
        http: Arc::new(http),
        ..found.config.clone()
    };
    node.http.leases.prepare(&next, node.identities.as_ref());
    node.telemetry.prepare(&next.http);
    node.publish(|in_force| {
        let http = match Arc::ptr_eq(&in_force.http, &found.config.http) {
            true => next.http.clone(),
            // DNS has told of addresses meanwhile.
            false => Arc::new((*next.http).clone().continuing(&in_force.http)),
        };
        let config = Config {
            http,
            ..in_force.clone()
        };
        (config, Touched::default())
    });
    let config = node.snapshot().config.clone();
    node.http.originations.keep(&config.http);
    node.http.leases.keep(&config);
    node.telemetry.keep(&config.http);
}
