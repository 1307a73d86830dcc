//! A small cluster: two nodes, the proxy's own pod, and a few others.

use std::net::{IpAddr, Ipv4Addr};

use underpass_tests::istiod::{Istiod, Pod, namespace, node};
use underpass_tests::{Need, World, available};

/// The token of the proxy of `node-a`: bound to its pod, of the account that istiod lets ask for others' certificates.
pub(crate) const NODE_TOKEN: &str = "istio-system/ztunnel/ztunnel-a";

/// An istiod on loopback, if this machine has one, whose cluster has two nodes, the namespace `shop` and the proxy of `node-a`.
pub(crate) fn cluster() -> Option<(World, Istiod)> {
    if !available(&[Need::Istiod]) {
        return None;
    }
    let world = World::loopback();
    let istiod = Istiod::start(&world, &world.host());
    istiod.apply("nodes", node("node-a", "zone-a") + &node("node-b", "zone-b"));
    istiod.apply("shop", namespace("shop", ""));
    let proxy = Pod::new("istio-system/ztunnel-a", address(1, 250)).account("ztunnel");
    istiod.apply("proxy", proxy.uncaptured());
    Some((world, istiod))
}

/// The address of pod `pod` on node `node`.
pub(crate) fn address(node: u8, pod: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, node, pod).into()
}
