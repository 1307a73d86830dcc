//! `HttpConnectionManager.Tracing`: spans. Nothing else of a request depends on them, so what is not understood of them closes nothing; but whoever is told of spans by
//! what is not understood could be told of too many, or too much, so then there are none.

use std::sync::Arc;

use underpass_config::Batching;
use underpass_config::http::{
    Format, MetadataTag, Propagation, Sampling, SpanDirection, SpanTag, Stage, TagValue, Tracing, TracingProvider,
};

use super::super::refusal::{At, Refused, only_if};
use super::super::values::{field_name, unpack};
use super::export;
use crate::proto::envoy::config::core::v3::TypedExtensionConfig;
use crate::proto::envoy::config::trace::v3 as trace;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as wire;
use crate::proto::envoy::extensions::tracers::opentelemetry::resource_detectors::v3::EnvironmentResourceDetectorConfig;
use crate::proto::envoy::r#type::metadata::v3 as metadata;
use crate::proto::envoy::r#type::tracing::v3 as tags;
use crate::proto::envoy::r#type::v3::Percent;
use metadata::metadata_key::path_segment::Segment;
use metadata::metadata_kind::Kind;
use tags::custom_tag::Type;

/// How requests are traced; none: they are not. What is left out of that is put into `left_out`.
pub(super) fn translate(
    wire: &wire::Tracing,
    by_request_id: bool,
    left_out: &mut Vec<Refused>,
) -> Option<Arc<Tracing>> {
    let wire::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        custom_tags,
        provider,
        max_path_tag_length,
        spawn_upstream_span,
    } = wire;
    // Nobody is told.
    let provider = provider.as_ref()?;
    let settings = || {
        let default = Sampling::default();
        let sampling = Sampling {
            client: share("client_sampling", client_sampling.as_ref(), default.client)?,
            random: share("random_sampling", random_sampling.as_ref(), Sampling::RANDOM_ALL)?,
            overall: share("overall_sampling", overall_sampling.as_ref(), default.overall)?,
            by_request_id,
        };
        let provider = translate_provider(provider).at("provider")?;
        Ok((sampling, provider))
    };
    let (sampling, provider) = settings().at("tracing").map_err(|why| left_out.push(why)).ok()?;
    let mut known = Vec::with_capacity(custom_tags.len());
    for (index, wire) in custom_tags.iter().enumerate() {
        match tag(wire).item(index).at("tracing.custom_tags") {
            Ok(tag) => known.push(tag),
            Err(why) => left_out.push(why),
        }
    }
    let mut tracing = Tracing::new(Arc::new(provider), known);
    tracing.sampling = sampling;
    // That of `main_internal`.
    tracing.direction = SpanDirection::Ingress;
    tracing.has_try_spans = spawn_upstream_span.unwrap_or(false);
    tracing.max_path_tag_length = max_path_tag_length.map_or(Tracing::MAX_PATH_TAG_LENGTH, |length| length as usize);
    Some(Arc::new(tracing))
}

/// Of `all`, which it is if nothing is said.
fn share(field: &str, wire: Option<&Percent>, all: u32) -> Result<u32, Refused> {
    let Some(Percent { value }) = wire else {
        return Ok(all);
    };
    Sampling::part(*value, all).ok_or_else(|| Refused::new(field, format!("is {value}, which is no percentage")))
}

fn translate_provider(wire: &trace::tracing::Http) -> Result<TracingProvider, Refused> {
    let trace::tracing::Http {
        // A label: the type decides.
        name: _,
        config_type,
    } = wire;
    let any = config_type
        .as_ref()
        .map(|trace::tracing::http::ConfigType::TypedConfig(any)| any);
    let trace::OpenTelemetryConfig {
        grpc_service,
        service_name,
        http_service,
        resource_detectors,
    } = unpack(any).at("typed_config")?;
    let export = match (&grpc_service, &http_service) {
        (Some(wire), None) => export::by_grpc(wire, Batching::SPANS).at("grpc_service"),
        (None, Some(wire)) => export::by_http(wire, Batching::SPANS).at("http_service"),
        (Some(_), Some(_)) => Err(Refused::new("http_service", "is there beside `grpc_service`")),
        (None, None) => Err(Refused::missing("grpc_service")),
    };
    let export = export.at("typed_config")?;
    for (index, wire) in resource_detectors.iter().enumerate() {
        detector(wire).item(index).at("typed_config.resource_detectors")?;
    }
    Ok(TracingProvider {
        name: export.cluster.clone(),
        export,
        resource: TracingProvider::resource(&service_name, !resource_detectors.is_empty(), std::iter::empty()),
        // Envoy's for this type.
        propagation: vec![Propagation::W3c],
    })
}

/// One that asks the environment, which is the only one that is known.
fn detector(wire: &TypedExtensionConfig) -> Result<(), Refused> {
    let TypedExtensionConfig {
        // A label: the type decides.
        name: _,
        typed_config,
    } = wire;
    let EnvironmentResourceDetectorConfig {} = unpack(typed_config.as_ref()).at("typed_config")?;
    Ok(())
}

fn tag(wire: &tags::CustomTag) -> Result<SpanTag, Refused> {
    let tags::CustomTag { tag, r#type } = wire;
    only_if(!tag.is_empty(), "tag", "is empty")?;
    let value = match r#type {
        Some(Type::Literal(tags::custom_tag::Literal { value })) => TagValue::Fixed(value.as_str().into()),
        Some(Type::Environment(tags::custom_tag::Environment { name, default_value })) => {
            TagValue::environment(name, default_value)
        }
        Some(Type::RequestHeader(tags::custom_tag::Header { name, default_value })) => {
            let name = field_name(name).at("request_header.name")?;
            TagValue::Header(name, default_value.as_str().into())
        }
        Some(Type::Metadata(wire)) => TagValue::Metadata(found(wire).at("metadata")?),
        Some(Type::Value(text)) => {
            let format = Format::parse(text, Stage::Log);
            TagValue::Told(format.map_err(|why| Refused::new("value", why.to_string()))?)
        }
        None => return Err(Refused::missing("type")),
    };
    Ok(SpanTag {
        name: tag.as_str().into(),
        value,
    })
}

/// What a filter has found out of the request.
fn found(wire: &tags::custom_tag::Metadata) -> Result<MetadataTag, Refused> {
    let tags::custom_tag::Metadata {
        kind,
        metadata_key,
        default_value,
    } = wire;
    let is_of_request = matches!(
        kind,
        Some(metadata::MetadataKind {
            kind: Some(Kind::Request(metadata::metadata_kind::Request {}))
        })
    );
    only_if(is_of_request, "kind", "is not of the request, which is not supported")?;
    let metadata::MetadataKey { key, path } = metadata_key.as_ref().ok_or_else(|| Refused::missing("metadata_key"))?;
    let names = path
        .iter()
        .map(|metadata::metadata_key::PathSegment { segment }| match segment {
            Some(Segment::Key(key)) => Ok(key.as_str().into()),
            None => Err(Refused::missing("metadata_key.path")),
        });
    Ok(MetadataTag {
        filter: key.as_str().into(),
        path: names.collect::<Result<_, _>>()?,
        default: default_value.as_str().into(),
    })
}
