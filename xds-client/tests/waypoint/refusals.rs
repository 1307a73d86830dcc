//! What is not understood closes what it is of, says why, and nothing else.

use prost_reflect::{DynamicMessage, ReflectMessage, Value};
use underpass_config::waypoint::{Going, Lead};
use underpass_xds_client::descriptor;
use underpass_xds_client::waypoint::Held;

use crate::reflection::{any, edit, list, set, unknown_any};
use crate::{SERVER, SERVER_TCP, held, message, response};

const HCM: &str = "filter_chains[0].filters[0].typed_config";
const ROUTE: &str = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0]";

pub fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// What becomes of the chains of a scenario whose listener is changed so.
fn changed(scenario: &str, change: impl FnOnce(&mut DynamicMessage)) -> Held {
    let mut held = held(scenario);
    let mut listener = message(scenario, "lds", "main_internal");
    change(&mut listener);
    held.take(&response("lds", "main_internal", &listener)).unwrap();
    held
}

/// The chain is closed for this reason, and no other is.
fn closed(held: &Held, name: &str, field: &str, why: &str) {
    for (other, kept) in &held.chains {
        assert_eq!(
            kept.served.is_err(),
            &**other == name,
            "{other}: {:?}",
            kept.served.as_ref().err()
        );
    }
    let refused = held.chains[name].served.as_ref().unwrap_err();
    assert!(refused.field.contains(field) && refused.why.contains(why), "{refused}");
    assert_eq!(&*refused.name, name);
    assert!(held.unlike.is_empty());
}

/// A field that is set as `value` and closes the server's chain.
#[track_caller]
fn refuses(scenario: &str, path: &str, value: Value, field: &str, why: &str) {
    let held = changed(scenario, |listener| set(listener, path, value.clone()));
    closed(&held, SERVER, field, why);
}

pub fn wrapped(name: &str, value: Value) -> Value {
    let mut message = DynamicMessage::new(descriptor(name).unwrap());
    message.set_field_by_name("value", value);
    Value::Message(message)
}

#[test]
fn a_filter_that_is_not_known_closes_its_chain() {
    let filter = |any: Value| {
        let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
        let mut filter = DynamicMessage::new(descriptor(name).unwrap());
        filter.set_field_by_name("name", text("a.wasm.plugin"));
        filter.set_field_by_name("typed_config", any);
        Value::Message(filter)
    };
    let held = changed("03-l7-authorization", |listener| {
        list(listener, &format!("{HCM}.http_filters"), |filters| {
            filters.insert(0, filter(unknown_any()))
        });
    });
    closed(&held, SERVER, "http_filters[0].typed_config", "some.Thing");
    // Rules behind what only watches would not guard that.
    let held = changed("03-l7-authorization", |listener| {
        list(listener, &format!("{HCM}.http_filters"), |filters| {
            let rules = filters.remove(4);
            filters.insert(filters.len() - 1, rules);
        });
    });
    closed(&held, SERVER, "http_filters", "behind filters");
    let held = changed("01-baseline", |listener| {
        list(listener, &format!("{HCM}.http_filters"), |filters| drop(filters.pop()));
    });
    closed(&held, SERVER, "http_filters", "router");
    let lua = changed("01-baseline", |listener| {
        list(listener, "filter_chains[1].filters", |filters| {
            let name = "envoy.config.listener.v3.Filter";
            let mut filter = DynamicMessage::new(descriptor(name).unwrap());
            filter.set_field_by_name("typed_config", unknown_any());
            filters.insert(0, Value::Message(filter));
        });
    });
    closed(&lua, SERVER_TCP, "filters[0].typed_config", "some.Thing");
}

/// Protobuf's decoders drop fields that they don't know; here one closes what it is in, wherever in it that is.
#[test]
fn a_field_that_is_not_known_closes_its_chain() {
    for path in [
        "filter_chains[0].filters[0].typed_config.stat_prefix",
        "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.prefix",
        "filter_chains[0].filters[0].typed_config.http_filters[1].typed_config.rules.policies[P].permissions",
    ] {
        let scenario = if path.contains("[P]") {
            "03-l7-authorization"
        } else {
            "01-baseline"
        };
        let mut listener = message(scenario, "lds", "main_internal");
        let path = path.replace("http_filters[1]", "http_filters[3]");
        let path = path.replace("[P]", "[ns[shop]-policy[deny-deletes]-rule[0]]");
        edit(&mut listener, &path, &mut |message, _| {
            use prost::Message;
            // Field 2000, a number.
            let mut bytes = message.encode_to_vec();
            bytes.extend([0x80, 0x7d, 0x01]);
            *message = DynamicMessage::decode(message.descriptor(), &*bytes).unwrap();
        });
        let mut held = held(scenario);
        held.take(&response("lds", "main_internal", &listener)).unwrap();
        closed(&held, SERVER, "2000", "is not known");
    }
}

#[test]
fn what_is_said_otherwise_than_it_can_be_closes_its_chain() {
    let baseline = "01-baseline";
    let route = |field: &str| format!("{ROUTE}.{field}");
    let hcm = |field: &str| format!("{HCM}.{field}");
    let yes = || wrapped("google.protobuf.BoolValue", Value::Bool(true));
    refuses(
        baseline,
        &hcm("use_remote_address"),
        yes(),
        "use_remote_address",
        "true",
    );
    refuses(
        baseline,
        &hcm("forward_client_cert_details"),
        Value::EnumNumber(2),
        "forward_client",
        "wiring",
    );
    refuses(
        baseline,
        &hcm("path_with_escaped_slashes_action"),
        Value::EnumNumber(2),
        "escaped_slashes",
        "normalization",
    );
    refuses(
        baseline,
        &hcm("upgrade_configs[0].upgrade_type"),
        text("CONNECT"),
        "upgrade_configs",
        "CONNECT",
    );
    refuses(
        baseline,
        &hcm("http_filters[0].typed_config"),
        unknown_any(),
        "http_filters[0]",
        "some.Thing",
    );
    let struct_of = "http_filters[3].typed_config.type_url";
    refuses(
        baseline,
        &hcm(struct_of),
        text("type.googleapis.com/a.B"),
        "http_filters[3]",
        "a.B",
    );
    let delay = any("envoy.extensions.filters.http.fault.v3.HTTPFault", |fault| {
        let name = "envoy.extensions.filters.common.fault.v3.FaultDelay";
        fault.set_field_by_name("delay", Value::Message(DynamicMessage::new(descriptor(name).unwrap())));
    });
    refuses(
        baseline,
        &hcm("http_filters[1].typed_config"),
        delay,
        "http_filters[1]",
        "all routes",
    );
    refuses(
        baseline,
        &route("route.retry_policy.retry_on"),
        text("5xx,odd"),
        "retry_on",
        "`odd`",
    );
    refuses(
        baseline,
        &route("route.cluster_not_found_response_code"),
        Value::EnumNumber(9),
        "not_found",
        "9",
    );
    refuses(
        baseline,
        &route("route.host_rewrite_literal"),
        text("a\nb"),
        "host_rewrite_literal",
        "value",
    );
    let pattern = "envoy.type.matcher.v3.RegexMatcher";
    let mut regex = DynamicMessage::new(descriptor(pattern).unwrap());
    regex.set_field_by_name("regex", text("a(?=b)"));
    refuses(
        baseline,
        &route("match.safe_regex"),
        Value::Message(regex),
        "safe_regex",
        "regular expression",
    );
    let traffic = "05-traffic-management";
    let routes = |index: usize, field: &str| format!("{HCM}.route_config.virtual_hosts[0].routes[{index}].{field}");
    let edit = "request_headers_to_add[0]";
    refuses(
        traffic,
        &routes(0, &format!("{edit}.header.key")),
        text("content-length"),
        "header.key",
        "proxy's own",
    );
    refuses(
        traffic,
        &routes(0, &format!("{edit}.header.value")),
        text("%ODD%"),
        "header.value",
        "`%ODD%`",
    );
    refuses(
        traffic,
        &routes(0, &format!("{edit}.append_action")),
        Value::EnumNumber(9),
        "append_action",
        "9",
    );
}

#[test]
fn rules_that_are_not_understood_close_their_chain() {
    let rules = |field: &str| {
        format!("{HCM}.http_filters[3].typed_config.rules.policies[ns[shop]-policy[deny-deletes]-rule[1]].{field}")
    };
    let scenario = "03-l7-authorization";
    let state = "principals[0].and_ids.ids[0].not_id.or_ids.ids[0].filter_state";
    refuses(
        scenario,
        &rules(&format!("{state}.key")),
        text("another"),
        "filter_state.key",
        "`another`",
    );
    let action = format!("{HCM}.http_filters[3].typed_config.rules.action");
    refuses(scenario, &action, Value::EnumNumber(7), "rules.action", "7");
    let any_path = rules("permissions[0].and_rules.rules[0]");
    let any_path = any_path
        .replace("-rule[1]", "-rule[0]")
        .replace("deny-deletes", "gateway-deny");
    refuses(
        scenario,
        &format!("{any_path}.any"),
        Value::Bool(false),
        "any",
        "means nothing",
    );
    let token = format!("{HCM}.http_filters[0].typed_config");
    refuses(
        "04-jwt",
        &format!("{token}.providers[origins-0].local_jwks.inline_string"),
        text("{}"),
        "local_jwks",
        "keys",
    );
    refuses(
        "04-jwt",
        &format!("{token}.providers[origins-0].payload_in_metadata"),
        text("x"),
        "payload",
        "`x`",
    );
    let named = "rules[0].requires.requires_any.requirements[0].provider_name";
    refuses(
        "04-jwt",
        &format!("{token}.{named}"),
        text("none"),
        "provider_name",
        "`none`",
    );
    let asked = format!("{HCM}.http_filters[1].typed_config");
    let shadow = "filter_enabled_metadata.path[0].key";
    refuses(
        scenario,
        &format!("{asked}.{shadow}"),
        text("x"),
        "filter_enabled_metadata",
        "another",
    );
    refuses(
        scenario,
        &format!("{asked}.transport_api_version"),
        Value::EnumNumber(0),
        "api_version",
        "V3",
    );
    // Rules of a connection can't ask for what only a request has.
    let header = any("envoy.extensions.filters.network.rbac.v3.RBAC", |rbac| {
        let whole = message(scenario, "lds", "main_internal");
        let mut whole = whole;
        edit(
            &mut whole,
            &format!("{HCM}.http_filters[3].typed_config.rules"),
            &mut |of, name| {
                rbac.set_field_by_name("rules", of.get_field_by_name(name).unwrap().into_owned());
            },
        );
    });
    let held = changed(scenario, |listener| {
        set(listener, "filter_chains[1].filters[1].typed_config", header.clone());
    });
    closed(&held, SERVER_TCP, "rules", "ask for a request");
}

/// What just tells of requests closes nothing, and is told of.
#[test]
fn logs_and_metrics_that_are_not_understood_are_left_out() {
    let told = |held: &Held, field: &str, why: &str| {
        assert!(held.chains[SERVER].served.is_ok());
        let left = &held.chains[SERVER].left_out;
        let found = left
            .iter()
            .any(|one| one.field.contains(field) && one.why.contains(why));
        assert!(found, "{left:#?}");
    };
    let log = format!("{HCM}.access_log[0]");
    let held = changed("10-telemetry", |listener| {
        set(listener, &format!("{log}.typed_config"), unknown_any())
    });
    told(&held, "access_log[0].typed_config", "some.Thing");
    let held = changed("10-telemetry", |listener| {
        set(
            listener,
            &format!("{log}.filter.extension_filter.typed_config.expression"),
            text("odd("),
        );
    });
    told(&held, "access_log[0].filter", "CEL");
    let stats = format!("{HCM}.http_filters[4].typed_config.metrics[0].name");
    let held = changed("10-telemetry", |listener| set(listener, &stats, text("odd")));
    told(&held, "http_filters[4]", "`odd`");
}

#[test]
fn a_branch_that_is_not_understood_is_closed() {
    let branch = "filter_chain_matcher.matcher_tree.custom_match.typed_config.range_matchers[0].on_match.matcher";
    let held = changed("01-baseline", |listener| {
        set(
            listener,
            &format!("{branch}.matcher_tree.input.typed_config"),
            unknown_any(),
        );
    });
    let place = held.place.as_ref().unwrap();
    let lead = |to: &str| {
        let to = to.parse().unwrap();
        place.lead(&Going { authority: None, to })
    };
    assert!(
        matches!(lead("10.96.1.1:80"), Some(Lead::Closed(_))),
        "{:?}",
        lead("10.96.1.1:80")
    );
    assert!(matches!(lead("10.96.1.2:80"), Some(Lead::Chain(_))));
    assert!(held.closed[0].why.contains("some.Thing"), "{:?}", held.closed);
}

/// Which of two of one name is meant can't be known.
#[test]
fn two_chains_of_one_name_are_closed() {
    let held = changed("01-baseline", |listener| {
        list(listener, "filter_chains", |chains| chains.push(chains[0].clone()));
    });
    closed(&held, SERVER, "name", "another chain's");
}
