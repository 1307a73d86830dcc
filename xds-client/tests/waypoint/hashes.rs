//! What says the same is the same object, however it is written; what says something else is not.

use std::sync::Arc;

use prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};
use underpass_config::Text;
use underpass_xds_client::waypoint::{Held, Taken};

use crate::reflection::{clear, list, set};
use crate::{SCENARIOS, SERVER, TYPES, held, message, recording, response};

#[test]
fn a_push_that_sends_everything_again_rebuilds_nothing() {
    for scenario in SCENARIOS {
        let mut held = held(scenario);
        let chains: Vec<_> = held.chains.values().cloned().collect();
        for (_, kind) in TYPES {
            let taken = held.take(&recording(scenario, kind)).unwrap();
            assert_eq!(
                (taken.rebuilt, taken.removed, taken.closed),
                (vec![], vec![], vec![]),
                "{scenario} {kind}"
            );
            assert!(taken.kept > 0, "{scenario} {kind}");
        }
        let same = chains
            .iter()
            .zip(held.chains.values())
            .all(|(before, now)| Arc::ptr_eq(before, now));
        assert!(same, "{scenario}");
    }
}

/// The message, with its maps and the lists whose order says nothing the other way round in every `Any` that has some. (Go writes maps in any order.)
fn shuffled(message: &DynamicMessage) -> DynamicMessage {
    let mut changed = message.clone();
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        let value = match message.get_field(&field).as_ref() {
            Value::Message(inner) => Value::Message(shuffled(inner)),
            Value::List(items) => {
                let items = items.iter().map(|item| match item {
                    Value::Message(inner) => Value::Message(shuffled(inner)),
                    other => other.clone(),
                });
                let mut items: Vec<Value> = items.collect();
                if field.name() == "query_parameters" {
                    items.reverse();
                }
                Value::List(items)
            }
            _ => continue,
        };
        changed.set_field(&field, value);
    }
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let inner = crate::reflection::unpacked(message);
        let mut bytes = Vec::new();
        // Entries of a map are written one after the other: in another order, they are the same map.
        for (field, value) in shuffled(&inner).fields().collect::<Vec<_>>().into_iter().rev() {
            let mut alone = DynamicMessage::new(inner.descriptor());
            match value {
                Value::Map(entries) => {
                    let mut entries: Vec<_> = entries.iter().collect();
                    entries.sort_by_key(|(key, _)| std::cmp::Reverse(format!("{key:?}")));
                    for (key, value) in entries {
                        let mut one = DynamicMessage::new(inner.descriptor());
                        one.set_field(&field, Value::Map([(key.clone(), value.clone())].into()));
                        bytes.extend(one.encode_to_vec());
                    }
                }
                value => {
                    alone.set_field(&field, value.clone());
                    bytes.extend(alone.encode_to_vec());
                }
            }
        }
        changed.set_field_by_name("value", Value::Bytes(bytes.into()));
    }
    changed
}

#[test]
fn the_order_of_what_has_none_is_no_difference() {
    let mut differently_written = 0;
    for scenario in SCENARIOS {
        let mut held = held(scenario);
        for (_, kind) in TYPES {
            for resource in recording(scenario, kind).resources {
                let message = crate::decoded(&resource);
                let again = response(kind, &resource.name, &shuffled(&message));
                let bytes = &again.resources[0].resource.as_ref().unwrap().value;
                differently_written += usize::from(*bytes != resource.resource.as_ref().unwrap().value);
                let taken = held.take(&again).unwrap();
                assert_eq!(
                    (taken.rebuilt, taken.closed),
                    (vec![], vec![]),
                    "{scenario} {kind} {}",
                    resource.name
                );
            }
        }
    }
    assert!(differently_written > 50, "{differently_written}");
}

/// The recording where a route asks for two parameters of the query: of two runs, one had them the other way round.
#[test]
fn parameters_of_a_query_may_come_in_any_order() {
    let mut held = held("05-traffic-management");
    let mut listener = message("05-traffic-management", "lds", "main_internal");
    let parameters =
        "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.query_parameters";
    list(&mut listener, parameters, |items| items.reverse());
    assert_eq!(
        take(&mut held, "lds", "main_internal", &listener).rebuilt,
        Vec::<Text>::new()
    );
    // That of routes says which is taken.
    let routes = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes";
    list(&mut listener, routes, |items| items.reverse());
    assert_eq!(
        take(&mut held, "lds", "main_internal", &listener).rebuilt,
        [SERVER.into()]
    );
}

fn take(held: &mut Held, kind: &str, name: &str, message: &DynamicMessage) -> Taken {
    held.take(&response(kind, name, message)).unwrap()
}

#[test]
fn one_change_rebuilds_one_thing() {
    let mut held = held("05-traffic-management");
    let mut listener = message("05-traffic-management", "lds", "main_internal");
    let timeout = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].name";
    set(&mut listener, timeout, Value::String("other".to_owned()));
    let taken = take(&mut held, "lds", "main_internal", &listener);
    assert_eq!(taken.rebuilt, [SERVER.into()]);
    assert_eq!(taken.kept + 1, held.chains.len());

    let name = "inbound-vip|80|http|server-v1.shop.svc.cluster.local";
    let mut cluster = message("05-traffic-management", "cds", name);
    set(&mut cluster, "maglev_lb_config.table_size", value_of(65_537));
    assert_eq!(take(&mut held, "cds", name, &cluster).rebuilt, Vec::<Text>::new());
    set(&mut cluster, "maglev_lb_config.table_size", value_of(7));
    assert_eq!(take(&mut held, "cds", name, &cluster).rebuilt, [name.into()]);

    let mut endpoints = message("05-traffic-management", "eds", name);
    let weight = "endpoints[0].lb_endpoints[0].load_balancing_weight";
    clear(&mut endpoints, weight);
    assert_eq!(take(&mut held, "eds", name, &endpoints).rebuilt, [name.into()]);
}

fn value_of(number: u64) -> Value {
    let descriptor = underpass_xds_client::descriptor("google.protobuf.UInt64Value").unwrap();
    let mut message = DynamicMessage::new(descriptor);
    message.set_field_by_name("value", Value::U64(number));
    Value::Message(message)
}

#[test]
fn what_is_gone_is_removed() {
    let mut held = held("01-baseline");
    let mut listener = message("01-baseline", "lds", "main_internal");
    list(&mut listener, "filter_chains", |chains| {
        chains.remove(0);
    });
    assert_eq!(
        take(&mut held, "lds", "main_internal", &listener).removed,
        [SERVER.into()]
    );
    let mut gone = recording("01-baseline", "cds");
    gone.resources.clear();
    gone.removed_resources = vec![SERVER.to_owned(), "encap".to_owned(), "never-there".to_owned()];
    let taken = held.take(&gone).unwrap();
    assert_eq!(taken.removed, [SERVER.into()]);
    assert!(!held.clusters.contains_key(SERVER));
}

/// Mutants: what came in the same bytes is taken for what it was without being held any more; or what is of another type.
#[test]
fn what_comes_in_the_same_bytes_is_what_it_was_only_while_it_is_held() {
    for (_, kind) in TYPES {
        let mut held = held("01-baseline");
        let again = recording("01-baseline", kind);
        let mut gone = again.clone();
        gone.removed_resources = gone.resources.drain(..).map(|resource| resource.name).collect();
        let removed = held.take(&gone).unwrap().removed;
        assert!(!removed.is_empty());
        let mut rebuilt = held.take(&again).unwrap().rebuilt;
        rebuilt.sort();
        let mut removed = removed;
        removed.sort();
        assert_eq!(rebuilt, removed, "{kind}");
    }
    let mut held = held("01-baseline");
    held.endpoints.clear();
    assert!(!held.take(&recording("01-baseline", "eds")).unwrap().rebuilt.is_empty());
}

/// Mutant: what was around the chains is taken for what it was because it came in the same bytes, whatever came between.
#[test]
fn a_listener_that_could_not_be_read_is_in_order_again_when_it_comes_as_it_was() {
    let mut held = held("01-baseline");
    let listener = message("01-baseline", "lds", "main_internal");
    let good = response("lds", "main_internal", &listener);
    let mut broken = good.clone();
    broken.resources[0].resource.as_mut().unwrap().value = vec![0xff];
    let mut other = good.clone();
    other.resources[0].resource.as_mut().unwrap().type_url = "type.googleapis.com/some.Thing".to_owned();
    for bad in [broken, other] {
        assert_eq!(held.take(&bad).unwrap().closed.len(), 1);
        assert!(!held.unlike.is_empty());
        // Again, it is nothing new.
        held.take(&bad).unwrap();
        assert!(!held.unlike.is_empty());
        assert_eq!(held.take(&good).unwrap().rebuilt, Vec::<Text>::new());
        assert!(held.unlike.is_empty());
    }
}

/// A chain that is no message, in a listener that is one, is closed alone.
#[test]
fn a_chain_that_cannot_be_decoded_is_closed_alone() {
    let mut held = held("01-baseline");
    let listener = message("01-baseline", "lds", "main_internal");
    let mut one = response("lds", "main_internal", &listener);
    let bytes = &mut one.resources[0].resource.as_mut().unwrap().value;
    // `filter_chains`: a name, and `filters` that is a number.
    bytes.extend([0x1a, 6, 0x3a, 2, b'n', b'o', 0x18, 1]);
    let taken = held.take(&one).unwrap();
    assert_eq!((taken.rebuilt, taken.closed.len()), (vec!["no".into()], 1));
    assert!(held.chains["no"].served.is_err() && held.unlike.is_empty());
    assert_eq!(held.chains.values().filter(|kept| kept.served.is_err()).count(), 1);
}
