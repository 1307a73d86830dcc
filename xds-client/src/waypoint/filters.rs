//! `http_filters`: what requests go through. Whoever may turn one away comes first, as istiod has them; what is behind only watches, or acts by what a route
//! says.

mod ext_authz;
mod jwt;
pub(super) mod rbac;
pub(super) mod stats;

use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{Any, Struct};
use underpass_config::http::{Filter, RouteTable};
use underpass_config::waypoint::DynamicNames;

use super::cluster::cached_names;
use super::inspection::type_name;
use super::refusal::{At, Refused, only_if};
use super::values::unpack;
use crate::proto::envoy::extensions::filters::http as filters;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;
use crate::proto::stats::PluginConfig;
use crate::proto::udpa::r#type::v1::TypedStruct;
use wire::http_filter::ConfigType;

const PACKAGE: &str = "envoy.extensions.filters.http.";

/// How far the list has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Guards,
    Watchers,
    Router,
}

/// Puts the filters into a table; gives back where requests go that are for names which DNS is asked for.
pub(super) fn translate(
    list: &[wire::HttpFilter],
    table: &mut RouteTable,
    left_out: &mut Vec<Refused>,
) -> Result<Option<DynamicNames>, Refused> {
    let mut stage = Stage::Guards;
    let mut dynamic = None;
    for (index, filter) in list.iter().enumerate() {
        only_if(stage < Stage::Router, "", "go on behind the router")?;
        let wire::HttpFilter {
            // A label: the type decides.
            name: _,
            config_type,
        } = filter;
        let any = config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
        let any = any.ok_or_else(|| Refused::missing("typed_config")).item(index)?;
        let at = |refused: Result<(), Refused>| refused.at("typed_config").item(index);
        if let Some(guard) = guard(any).at("typed_config").item(index)? {
            // Behind a watcher it would not see what it refuses, and we can't have it there.
            at(only_if(
                stage == Stage::Guards,
                "",
                "is behind filters that are before it in a waypoint",
            ))?;
            table.filters.push(guard);
            continue;
        }
        stage = stage.max(Stage::Watchers);
        match type_name(any).strip_prefix(PACKAGE) {
            Some("router.v3.Router") => {
                let filters::router::v3::Router {} = unpack(Some(any)).at("typed_config").item(index)?;
                stage = Stage::Router;
            }
            Some("dynamic_forward_proxy.v3.FilterConfig") => {
                let filters::dynamic_forward_proxy::v3::FilterConfig {
                    implementation_specifier,
                } = unpack(Some(any)).at("typed_config").item(index)?;
                use filters::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
                let cache = implementation_specifier.map(|ImplementationSpecifier::DnsCacheConfig(cache)| cache);
                let cache = cache.ok_or_else(|| Refused::missing("dns_cache_config"));
                dynamic = Some(
                    cache
                        .and_then(|cache| cached_names(&cache))
                        .at("typed_config")
                        .item(index)?,
                );
            }
            _ if type_name(any) == "stats.PluginConfig" => {
                let config: PluginConfig = unpack(Some(any)).at("typed_config").item(index)?;
                match stats::translate(&config) {
                    Ok((metrics, _)) => table.metrics = Arc::new(metrics),
                    Err(why) => left_out.push(why.within(&format!("http_filters[{index}]"))),
                }
            }
            _ => at(watches(any))?,
        }
    }
    only_if(stage == Stage::Router, "", "have no router at their end")?;
    Ok(dynamic)
}

/// A filter that may turn a request away.
fn guard(any: &Any) -> Result<Option<Filter>, Refused> {
    Ok(Some(match type_name(any).strip_prefix(PACKAGE) {
        Some("rbac.v3.RBAC") => {
            let filters::rbac::v3::Rbac {
                rules,
                shadow_rules,
                shadow_rules_stat_prefix,
            } = unpack(Some(any))?;
            let rules = [rules.as_ref(), shadow_rules.as_ref()];
            Filter::Rbac(rbac::translate(rules, &shadow_rules_stat_prefix)?)
        }
        Some("jwt_authn.v3.JwtAuthentication") => Filter::Jwt(jwt::translate(&unpack(Some(any))?)?),
        Some("ext_authz.v3.ExtAuthz") => Filter::ExtAuthz(ext_authz::translate(&unpack(Some(any))?)?),
        _ => return Ok(None),
    }))
}

/// A filter that is known to do nothing by itself, or nothing that the proxy does not do anyway.
fn watches(any: &Any) -> Result<(), Refused> {
    match type_name(any).strip_prefix(PACKAGE) {
        // What routes say of it is in routes.
        Some("cors.v3.Cors") => {
            let filters::cors::v3::Cors {} = unpack(Some(any))?;
            Ok(())
        }
        Some("fault.v3.HTTPFault") => {
            let fault: filters::fault::v3::HttpFault = unpack(Some(any))?;
            let is_empty = fault == filters::fault::v3::HttpFault::default();
            only_if(is_empty, "", "is for all routes, which is not supported")
        }
        // Messages of gRPC are counted in any case.
        Some("grpc_stats.v3.FilterConfig") => {
            let filters::grpc_stats::v3::FilterConfig {
                emit_filter_state: _,
                per_method_stat_specifier: _,
            } = unpack(Some(any))?;
            Ok(())
        }
        _ if type_name(any) == "udpa.type.v1.TypedStruct" => known_struct(any),
        _ => Err(Refused::unsupported("", format!("a `{}`", type_name(any)))),
    }
}

/// Filters of Istio's own that find out who is at the other end: the mesh is asked here. What they say is known, and has to be that.
pub(super) fn known_struct(any: &Any) -> Result<(), Refused> {
    let TypedStruct { type_url, value } = unpack(Some(any))?;
    let value = value.as_ref().map(written).unwrap_or_default();
    let is_known = match type_url.rsplit_once('/').map_or("", |(_, name)| name) {
        "io.istio.http.peer_metadata.Config" => value == "{upstream_discovery=[{workload_discovery={}}]}",
        "envoy.tcp.metadataexchange.config.MetadataExchange" => {
            value == "{enable_discovery=true,protocol=\"istio-peer-exchange\"}"
        }
        other => return Err(Refused::unsupported("", format!("a `{other}`"))),
    };
    only_if(is_known, "value", &format!("is {value}, of which nothing is known"))
}

/// A struct, with its names in order.
fn written(wire: &Struct) -> String {
    let fields = wire.fields.iter();
    let fields: Vec<String> = fields
        .map(|(name, value)| format!("{name}={}", of_value(value)))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn of_value(wire: &prost_types::Value) -> String {
    match &wire.kind {
        Some(Kind::StringValue(text)) => format!("{text:?}"),
        Some(Kind::BoolValue(is)) => is.to_string(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::NullValue(_)) | None => "null".to_owned(),
        Some(Kind::StructValue(inner)) => written(inner),
        Some(Kind::ListValue(list)) => {
            let items: Vec<String> = list.values.iter().map(of_value).collect();
            format!("[{}]", items.join(","))
        }
    }
}
