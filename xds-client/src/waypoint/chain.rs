//! One chain of `main_internal`: HTTP, where it ends in an `HttpConnectionManager`; else TCP.

use std::sync::Arc;

use underpass_config::waypoint::Chain;

use super::inspection::type_name;
use super::refusal::{At, Refused, only_if};
use super::values::unpack;
use super::{filters, http, tcp};
use crate::proto::envoy::config::listener::v3 as wire;
use crate::proto::envoy::extensions::filters::common::set_filter_state::v3 as state;
use crate::proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use crate::proto::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use crate::proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig;
use crate::proto::stats::PluginConfig;
use wire::filter::ConfigType;

const NETWORK: &str = "envoy.extensions.filters.network.";

/// Whether what is at this path only tells of requests, and changes nothing for them.
pub(super) fn only_tells(path: &str) -> bool {
    [".access_log[", ".tracing.", ".tracing<", "<stats.PluginConfig>"]
        .iter()
        .any(|part| path.contains(part))
}

/// What of telemetry is not told is put into `left_out`.
pub(super) fn translate(wire: &wire::FilterChain, left_out: &mut Vec<Refused>) -> Result<Chain, Refused> {
    let wire::FilterChain {
        filters,
        transport_socket,
        name,
    } = wire;
    only_if(transport_socket.is_none(), "transport_socket", "is there, and HBONE has ended before")?;
    let Some((last, before)) = filters.split_last() else {
        return Err(Refused::missing("filters"));
    };
    let mut way = tcp::Way::default();
    for (index, filter) in before.iter().enumerate() {
        passed(filter, &mut way, left_out).item(index).at("filters")?;
    }
    let any = config(last);
    let chain = any.and_then(|any| match type_name(any).strip_prefix(NETWORK) {
        Some("http_connection_manager.v3.HttpConnectionManager") => {
            only_if(way.is_plain(), "", "is behind filters of TCP, which is not supported")?;
            let manager = unpack(Some(any)).at("typed_config")?;
            http::translate(&manager, name, left_out).map(Chain::Http).at("typed_config")
        }
        Some("tcp_proxy.v3.TcpProxy") => {
            let proxy = unpack(Some(any)).at("typed_config")?;
            tcp::translate(&proxy, way, left_out).map(Chain::Tcp).at("typed_config")
        }
        _ => Err(Refused::unsupported("typed_config", format!("a `{}` at the end", type_name(any)))),
    });
    chain.item(before.len()).at("filters")
}

fn config(filter: &wire::Filter) -> Result<&prost_types::Any, Refused> {
    let wire::Filter {
        // A label: the type decides.
        name: _,
        config_type,
    } = filter;
    match config_type {
        Some(ConfigType::TypedConfig(any)) => Ok(any),
        None => Err(Refused::missing("typed_config")),
    }
}

/// A filter that connections go through on their way.
fn passed(filter: &wire::Filter, way: &mut tcp::Way, left_out: &mut Vec<Refused>) -> Result<(), Refused> {
    let any = config(filter)?;
    match type_name(any) {
        "udpa.type.v1.TypedStruct" => filters::known_struct(any).at("typed_config"),
        "envoy.extensions.filters.network.set_filter_state.v3.Config" => {
            let config = unpack(Some(any)).at("typed_config")?;
            check_state(&config).at("typed_config")
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let Rbac {
                rules,
                shadow_rules,
                // What Envoy's statistics call it.
                stat_prefix: _,
                shadow_rules_stat_prefix,
            } = unpack(Some(any)).at("typed_config")?;
            let rules = [rules.as_ref(), shadow_rules.as_ref()];
            way.rules.push(filters::rbac::of_connections(rules, &shadow_rules_stat_prefix).at("typed_config")?);
            Ok(())
        }
        "stats.PluginConfig" => {
            let config: PluginConfig = unpack(Some(any)).at("typed_config")?;
            match filters::stats::translate(&config) {
                Ok((metrics, interval)) => {
                    (way.metrics, way.reporting_interval) = (Arc::new(metrics), interval);
                }
                Err(why) => left_out.push(why.within("istio.stats")),
            }
            Ok(())
        }
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig" => {
            let config: FilterConfig = unpack(Some(any)).at("typed_config")?;
            way.dynamic = Some(tcp::dynamic(&config).at("typed_config")?);
            Ok(())
        }
        other => Err(Refused::unsupported("typed_config", format!("a `{other}`"))),
    }
}

/// Chains of workloads give on where the connection was going, to how HBONE to it is wired. That is known here.
fn check_state(config: &set_filter_state::Config) -> Result<(), Refused> {
    const LOCAL: &str = "envoy.filters.listener.original_dst.local_ip";
    let set_filter_state::Config { on_new_connection } = config;
    let [value] = &on_new_connection[..] else {
        return Err(Refused::unsupported("on_new_connection", "of another length"));
    };
    let state::FilterStateValue {
        key,
        value,
        shared_with_upstream,
        factory_key,
    } = value;
    let once = state::filter_state_value::SharedWithUpstream::Once as i32;
    only_if(*shared_with_upstream == once, "on_new_connection[0].shared_with_upstream", "is not ONCE")?;
    only_if(factory_key.is_empty(), "on_new_connection[0].factory_key", "is nothing that is known")?;
    let is_local = matches!(key, Some(state::filter_state_value::Key::ObjectKey(key)) if key == LOCAL);
    only_if(is_local, "on_new_connection[0].object_key", "is nothing that is known")?;
    let Some(state::filter_state_value::Value::FormatString(format)) = value else {
        return Err(Refused::missing("on_new_connection[0].format_string"));
    };
    only_if(format.formatters.is_empty(), "on_new_connection[0].format_string", "needs extensions")?;
    let text = http::logs::inline(format);
    let same = format!("%FILTER_STATE({LOCAL}:PLAIN)%");
    let is_same = text == Some(same.as_str());
    only_if(is_same, "on_new_connection[0].format_string", "is not what it was before")
}
