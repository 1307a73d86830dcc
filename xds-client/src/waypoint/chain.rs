//! One chain of `main_internal`: HTTP, where it ends in an `HttpConnectionManager`; else TCP.

use std::net::SocketAddr;
use std::sync::Arc;

use underpass_config::waypoint::{Chain, HttpChain};

use super::inspection::type_name;
use super::refusal::{At, Refused, only_if};
use super::values::unpack;
use super::{filters, http, tcp};
use crate::proto::envoy::config::listener::v3 as wire;
use crate::proto::envoy::extensions::filters::common::set_filter_state::v3 as state;
use crate::proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use crate::proto::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use crate::proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig;
use crate::proto::envoy::extensions::formatter::cel::v3::Cel;
use crate::proto::stats::PluginConfig;
use wire::filter::ConfigType;

const NETWORK: &str = "envoy.extensions.filters.network.";

/// Whether what is at this path only tells of requests, and changes nothing for them.
pub(super) fn only_tells(path: &str) -> bool {
    let others = [".access_log[", "<stats.PluginConfig>"];
    is_of_tracing(path) || others.iter().any(|part| path.contains(part))
}

/// Whether what is at this path is of spans.
pub(super) fn is_of_tracing(path: &str) -> bool {
    [".tracing.", ".tracing<"].iter().any(|part| path.contains(part))
}

/// What of telemetry is not told is put into `left_out`.
pub(super) fn translate(wire: &wire::FilterChain, left_out: &mut Vec<Refused>) -> Result<Chain, Refused> {
    let wire::FilterChain {
        filters,
        transport_socket,
        name,
    } = wire;
    only_if(
        transport_socket.is_none(),
        "transport_socket",
        "is there, and HBONE has ended before",
    )?;
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
            let chain = http::translate(&manager, name, left_out).at("typed_config")?;
            Ok(Chain::Http(HttpChain {
                destination: way.destination,
                ..chain
            }))
        }
        Some("tcp_proxy.v3.TcpProxy") => {
            let proxy = unpack(Some(any)).at("typed_config")?;
            tcp::translate(&proxy, way, left_out).map(Chain::Tcp).at("typed_config")
        }
        _ => Err(Refused::unsupported(
            "typed_config",
            format!("a `{}` at the end", type_name(any)),
        )),
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
            way.destination = way.destination.or(state(&config).at("typed_config")?);
            Ok(())
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
            way.rules
                .push(filters::rbac::of_connections(rules, &shadow_rules_stat_prefix).at("typed_config")?);
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

/// What is kept of where a connection was going. Chains of workloads give it on to how HBONE to it is wired, which is known here. Those of services say what
/// stands for it where the tunnel named the service: the service's own address, which is given back.
fn state(config: &set_filter_state::Config) -> Result<Option<SocketAddr>, Refused> {
    const LOCAL: &str = "envoy.filters.listener.original_dst.local_ip";
    const ORIGINAL: &str = "envoy.network.transport_socket.original_dst_address";
    use state::filter_state_value::{Key, SharedWithUpstream as Shared, Value};
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
    let odd = |field: &str| Refused::new(format!("on_new_connection[0].{field}"), "is nothing that is known");
    let (Some(Key::ObjectKey(key)), Some(Value::FormatString(format))) = (key, value) else {
        return Err(odd("object_key"));
    };
    let text = http::logs::inline(format).ok_or_else(|| odd("format_string"))?;
    let shared = Shared::try_from(*shared_with_upstream).map_err(|_| odd("shared_with_upstream"))?;
    if !factory_key.is_empty() {
        return Err(odd("factory_key"));
    }
    match (key.as_str(), shared) {
        (LOCAL, Shared::Once) if text == format!("%FILTER_STATE({LOCAL}:PLAIN)%") && format.formatters.is_empty() => {
            Ok(None)
        }
        (ORIGINAL, Shared::None) => {
            let otherwise = format!("%CEL('{LOCAL}' in filter_state ? filter_state['{LOCAL}']: r'");
            let address = text.strip_prefix(&otherwise).and_then(|rest| rest.strip_suffix("')%"));
            let address = address.and_then(|address| address.parse().ok());
            let [formatter] = &format.formatters[..] else {
                return Err(odd("format_string.formatters"));
            };
            let Cel {} =
                unpack(formatter.typed_config.as_ref()).at("on_new_connection[0].format_string.formatters[0]")?;
            address.map(Some).ok_or_else(|| odd("format_string"))
        }
        (LOCAL, _) => Err(odd("format_string")),
        _ => Err(odd("object_key")),
    }
}
