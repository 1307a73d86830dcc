//! Clusters, endpoints and wiring that are not understood.

use prost_reflect::Value;
use underpass_xds_client::waypoint::LISTENER;

use crate::reflection::{clear, list, set, unknown_any};
use crate::refusals::{text, wrapped};
use crate::{SERVER, held, message, response};

/// What is wiring must be what is known: an authorization filter in it, dropped with it, would let everybody in.
#[test]
fn wiring_that_is_not_as_it_is_known_closes_all() {
    let mut held = held("01-baseline");
    let mut listener = message("01-baseline", "lds", "connect_terminate");
    let filters = "filter_chains[0].filters[0].typed_config.http_filters";
    list(&mut listener, filters, |filters| {
        let mut rules = filters[0].clone();
        rules
            .as_message_mut()
            .unwrap()
            .set_field_by_name("typed_config", unknown_any());
        filters.insert(0, rules);
    });
    held.take(&response("lds", "connect_terminate", &listener)).unwrap();
    let why = &held.unlike[&(LISTENER, "connect_terminate".into())];
    assert!(why.field.contains("http_filters[0]"), "{why}");
    // And is in order again when it is.
    let good = message("01-baseline", "lds", "connect_terminate");
    held.take(&response("lds", "connect_terminate", &good)).unwrap();
    assert!(held.unlike.is_empty());
    for (listener, path, value) in [
        (
            "connect_terminate",
            "filter_chains[0].transport_socket.typed_config.require_client_certificate",
            None,
        ),
        (
            "connect_terminate",
            "address.socket_address.port_value",
            Some(Value::U32(15009)),
        ),
        (
            "connect_originate",
            "filter_chains[0].filters[0].typed_config.cluster",
            Some(text("elsewhere")),
        ),
        ("main_internal", "listener_filters[0].typed_config", Some(unknown_any())),
    ] {
        let mut changed = message("01-baseline", "lds", listener);
        match value {
            Some(value) => set(&mut changed, path, value),
            None => clear(&mut changed, path),
        }
        let mut held = crate::held("01-baseline");
        held.take(&response("lds", listener, &changed)).unwrap();
        assert!(
            held.unlike.contains_key(&(LISTENER, listener.into())),
            "{listener} {path}"
        );
    }
    let mut other = good;
    set(&mut other, "name", text("my_listener"));
    held.take(&response("lds", "my_listener", &other)).unwrap();
    assert!(held.unlike.contains_key(&(LISTENER, "my_listener".into())));
}

#[test]
fn a_cluster_that_is_not_understood_is_closed() {
    let scenario = "05-traffic-management";
    let tls = "inbound-vip|80|http|server-v2.shop.svc.cluster.local";
    let socket = "transport_socket.typed_config.transport_socket.typed_config";
    let common = format!("{socket}.common_tls_context");
    let roots = format!("{common}.combined_validation_context.validation_context_sds_secret_config.name");
    for (name, path, value, field, why) in [
        (
            SERVER,
            "lb_policy".to_owned(),
            Value::EnumNumber(7),
            "lb_policy",
            "LOAD_BALANCING_POLICY_CONFIG",
        ),
        (SERVER, "type".to_owned(), Value::EnumNumber(0), "type", "STATIC"),
        (
            tls,
            roots,
            text("kubernetes://secret"),
            "sds_secret_config.name",
            "kubernetes://secret",
        ),
        (
            tls,
            format!("{common}.tls_params.tls_minimum_protocol_version"),
            Value::EnumNumber(1),
            "tls_minimum",
            "1.2",
        ),
        (tls, socket.to_owned(), unknown_any(), "transport_socket", "some.Thing"),
        (
            SERVER,
            "upstream_connection_options.tcp_keepalive.keepalive_time".to_owned(),
            number(99_999),
            "tcp_keepalive",
            "kernel",
        ),
        (
            SERVER,
            "outlier_detection.max_ejection_percent".to_owned(),
            number(101),
            "max_ejection_percent",
            "100",
        ),
        (
            SERVER,
            "circuit_breakers.thresholds[0].priority".to_owned(),
            Value::EnumNumber(1),
            "priority",
            "DEFAULT",
        ),
        (
            SERVER,
            "circuit_breakers.thresholds[0].max_connections".to_owned(),
            number(0),
            "max_connections",
            "0",
        ),
    ] {
        let mut held = held(scenario);
        let mut cluster = message(scenario, "cds", name);
        set(&mut cluster, &path, value);
        let taken = held.take(&response("cds", name, &cluster)).unwrap();
        let refused = held.clusters[name].served.as_ref().unwrap_err();
        assert!(
            refused.field.contains(field) && refused.why.contains(why),
            "{path}: {refused}"
        );
        assert_eq!(taken.closed, std::slice::from_ref(refused));
        assert_eq!(
            held.clusters.values().filter(|kept| kept.served.is_err()).count(),
            1,
            "{path}"
        );
    }
}

fn number(value: u32) -> Value {
    wrapped("google.protobuf.UInt32Value", Value::U32(value))
}

/// One endpoint that is not understood is left out; the others serve.
#[test]
fn an_endpoint_that_is_not_understood_is_left_out() {
    let address = "endpoints[0].lb_endpoints[0].endpoint.address";
    for (path, value, why) in [
        (
            format!("{address}.envoy_internal_address.server_listener_name"),
            text("elsewhere"),
            "`elsewhere`",
        ),
        (
            format!("{address}.envoy_internal_address.endpoint_id"),
            text("10.0.0.1"),
            "no address",
        ),
        (
            format!("{address}.envoy_internal_address.endpoint_id"),
            text("10.0.0.1:80"),
            "local",
        ),
        (
            "endpoints[0].lb_endpoints[0].load_balancing_weight".to_owned(),
            number(0),
            "0",
        ),
    ] {
        let mut held = held("01-baseline");
        let mut set_of = message("01-baseline", "eds", SERVER);
        set(&mut set_of, &path, value);
        held.take(&response("eds", SERVER, &set_of)).unwrap();
        let kept = &held.endpoints[SERVER];
        assert_eq!(kept.served.as_ref().unwrap().endpoints.len(), 1, "{path}");
        assert!(
            kept.left_out.len() == 1 && kept.left_out[0].why.contains(why),
            "{path}: {:?}",
            kept.left_out
        );
    }
}

/// What can't be read at all does not leave the old in force: it is not what is meant now.
#[test]
fn what_is_no_message_is_closed() {
    let mut held = held("01-baseline");
    for kind in ["cds", "eds"] {
        let mut broken = response(kind, SERVER, &message("01-baseline", kind, SERVER));
        broken.resources[0].resource.as_mut().unwrap().value = vec![0xff, 0xff];
        held.take(&broken).unwrap();
    }
    assert!(held.clusters[SERVER].served.is_err() && held.endpoints[SERVER].served.is_err());
    let mut renamed = response("cds", "other", &message("01-baseline", "cds", SERVER));
    renamed.resources[0].name = "other".to_owned();
    held.take(&renamed).unwrap();
    let why = held.clusters["other"].served.as_ref().unwrap_err();
    assert_eq!(why.field, "name");
    let mut broken = response("lds", "main_internal", &message("01-baseline", "lds", "main_internal"));
    broken.resources[0].resource.as_mut().unwrap().value = vec![0xff];
    held.take(&broken).unwrap();
    assert!(held.unlike.contains_key(&(LISTENER, "main_internal".into())));
}
