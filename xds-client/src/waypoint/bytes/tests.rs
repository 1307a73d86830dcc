use prost::Message;
use prost_types::Any;

use super::*;
use crate::proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter::ConfigType};
use crate::proto::envoy::config::route::v3 as route;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3 as manager;
use manager::http_connection_manager::RouteSpecifier;

/// A chain with one route, which asks for these parameters, in an `Any` of this type.
fn chain(parameters: &[&str], routes: &[&str], url: &str) -> Vec<u8> {
    let parameter = |name: &&str| route::QueryParameterMatcher {
        name: (*name).to_owned(),
        ..Default::default()
    };
    let route = |name: &&str| route::Route {
        name: (*name).to_owned(),
        r#match: Some(route::RouteMatch {
            query_parameters: parameters.iter().map(parameter).collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let host = route::VirtualHost {
        name: "all".to_owned(),
        routes: routes.iter().map(route).collect(),
        ..Default::default()
    };
    let config = route::RouteConfiguration {
        virtual_hosts: vec![host],
        ..Default::default()
    };
    let manager = manager::HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(config)),
        ..Default::default()
    };
    let any = Any {
        type_url: url.to_owned(),
        value: manager.encode_to_vec(),
    };
    let filter = Filter {
        config_type: Some(ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    FilterChain {
        filters: vec![filter],
        name: "c".to_owned(),
        ..Default::default()
    }
    .encode_to_vec()
}

const URL: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Mutants: all lists are put in order; lists of messages of other types are.
#[test]
fn only_parameters_of_a_query_may_come_in_any_order() {
    let hash = |parameters: &[&str], routes: &[&str]| hash_of_chain(&chain(parameters, routes, URL));
    let one = hash(&["a", "bb", "c"], &["r", "s"]);
    assert_eq!(hash(&["c", "a", "bb"], &["r", "s"]), one);
    assert_ne!(hash(&["c", "a", "b"], &["r", "s"]), one);
    assert_ne!(hash(&["a", "bb", "c"], &["s", "r"]), one);
    assert_ne!(hash(&["a", "bb"], &["r", "s"]), one);
    let elsewhere = |parameters: &[&str]| hash_of_chain(&chain(parameters, &["r"], "type.googleapis.com/some.Thing"));
    assert_ne!(elsewhere(&["a", "b"]), elsewhere(&["b", "a"]));
}

#[test]
fn a_listener_comes_apart_and_has_everything() {
    let chains = ["one", "two"].map(|name| FilterChain {
        name: name.to_owned(),
        ..Default::default()
    });
    let whole = Listener {
        name: "main_internal".to_owned(),
        filter_chains: chains.to_vec(),
        traffic_direction: 1,
        ..Default::default()
    };
    let bytes = whole.encode_to_vec();
    let parts = Parts::of(&bytes).unwrap();
    let named: Vec<_> = parts.chains.iter().map(|(name, _)| &**name).collect();
    assert_eq!(named, ["one", "two"]);
    for ((_, bytes), chain) in parts.chains.iter().zip(&whole.filter_chains) {
        assert_eq!(FilterChain::decode(*bytes).unwrap(), *chain);
    }
    let frame = Listener {
        filter_chains: Vec::new(),
        ..whole
    };
    assert_eq!(Listener::decode(&*parts.frame).unwrap(), frame);
}

#[test]
fn what_is_no_message_does_not_come_apart() {
    // A length beyond the end; a key that is none; a name that is no text; a group.
    for bytes in [
        &[0x1a, 5, 0][..],
        &[0xff],
        &[0x1a, 3, 0x3a, 1, 0xff],
        &[0x0b, 0x0c],
        &[0x09, 1],
    ] {
        assert!(Parts::of(bytes).is_none(), "{bytes:?}");
        let _ = hash_of_chain(bytes);
    }
}
