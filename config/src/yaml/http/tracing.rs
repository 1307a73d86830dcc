//! `tracing_providers`, and `tracing` of a route table: Istio's `extensionProviders.opentelemetry` and `Telemetry.tracing`, with what istiod makes of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::super::export::{BatchingShape, ExportShape, HttpExportShape};
use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::headers::{format, header_name};
use super::report_unknown;
use super::routes::any_name;
use crate::http::{
    Decorator, Http, MetadataTag, Propagation, Sampling, SpanDirection, SpanTag, Stage, TagValue, Tracing,
    TracingProvider,
};
use crate::{Batching, Text};

/// Providers by name.
pub(super) type TracingProviders = HashMap<Text, Arc<TracingProvider>, RandomState>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TracingProviderShape<'a> {
    #[serde(borrow)]
    pub(super) name: Scalar<'a>,
    opentelemetry: OpenTelemetryShape<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenTelemetryShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    authority: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    http: Option<HttpExportShape<'a>>,
    #[serde(default)]
    headers: BTreeMap<Scalar<'a>, Scalar<'a>>,
    batching: Option<BatchingShape<'a>>,
    service_name: Option<Scalar<'a>>,
    #[serde(default)]
    resource_detectors: DetectorsShape,
    #[serde(default)]
    resource_attributes: BTreeMap<Scalar<'a>, Scalar<'a>>,
    propagation: Option<Vec<Scalar<'a>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DetectorsShape {
    environment: Option<EnvironmentDetectorShape>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EnvironmentDetectorShape {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TracingShape<'a> {
    #[serde(borrow)]
    provider: Scalar<'a>,
    client_sampling: Option<Scalar<'a>>,
    random_sampling: Option<Scalar<'a>>,
    overall_sampling: Option<Scalar<'a>>,
    use_request_id_for_trace_sampling: Option<Scalar<'a>>,
    direction: Option<Scalar<'a>>,
    spawn_upstream_span: Option<Scalar<'a>>,
    max_path_tag_length: Option<Scalar<'a>>,
    #[serde(default)]
    custom_tags: BTreeMap<Scalar<'a>, TagShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TagShape<'a> {
    #[serde(borrow)]
    literal: Option<ValueShape<'a>>,
    header: Option<NamedShape<'a>>,
    environment: Option<NamedShape<'a>>,
    formatter: Option<ValueShape<'a>>,
    metadata: Option<MetadataShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueShape<'a> {
    #[serde(borrow)]
    value: Scalar<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedShape<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    default_value: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetadataShape<'a> {
    #[serde(borrow)]
    key: Scalar<'a>,
    path: Vec<Scalar<'a>>,
    default_value: Option<Scalar<'a>>,
}

/// `decorator:` of a route: the operation, or that and whether the other side is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecoratorShape<'a> {
    #[serde(borrow)]
    operation: Scalar<'a>,
    propagate: Option<Scalar<'a>>,
}

const PROPAGATIONS: [(&str, Propagation); 3] = [
    ("w3c", Propagation::W3c),
    ("b3", Propagation::B3),
    ("b3-multi", Propagation::B3Multi),
];
const DIRECTIONS: [(&str, SpanDirection); 2] = [("ingress", SpanDirection::Ingress), ("egress", SpanDirection::Egress)];
/// More of a path than a head may have is never there.
const PATH_LENGTHS: RangeInclusive<u32> = 1..=65_536;

impl TracingProviderShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> TracingProvider {
        let name = reading.name(path.field("name"), &self.name);
        let path = path.field("opentelemetry");
        let shape = &self.opentelemetry;
        let export = ExportShape {
            path,
            cluster: &shape.cluster,
            authority: shape.authority.as_ref(),
            timeout: shape.timeout.as_ref(),
            headers: &shape.headers,
            http: shape.http.as_ref(),
            batching: shape.batching.as_ref(),
        };
        export.check(http, reading);
        TracingProvider {
            name,
            export: export.compile(Batching::SPANS, reading),
            resource: shape.resource(reading),
            propagation: shape.propagation(path.field("propagation"), reading),
        }
    }
}

impl OpenTelemetryShape<'_> {
    fn resource(&self, reading: &mut Reading) -> Vec<(Text, Text)> {
        let service = self.service_name.as_deref().unwrap_or_default();
        let said = self.resource_attributes.iter();
        let said = said.map(|(name, value)| (reading.text(name), reading.text(value)));
        TracingProvider::resource(service, self.resource_detectors.environment.is_some(), said)
    }

    fn propagation(&self, path: Path<'_>, reading: &mut Reading) -> Vec<Propagation> {
        let Some(words) = &self.propagation else {
            return vec![Propagation::W3c];
        };
        let mut propagation = Vec::with_capacity(words.len());
        for (index, word) in words.iter().enumerate() {
            let way = reading.choice(path.item(index), Some(word), &PROPAGATIONS);
            propagation.extend(way.filter(|way| !propagation.contains(way)));
        }
        if words.is_empty() {
            let remedy = "write one of: w3c, b3, b3-multi, or remove it for w3c";
            reading.report(path, "", "is empty: no trace would go on", remedy);
        }
        propagation
    }
}

impl TracingShape<'_> {
    pub(super) fn compile(
        &self,
        path: Path<'_>,
        providers: &TracingProviders,
        reading: &mut Reading,
    ) -> Option<Tracing> {
        let mut tags = Vec::with_capacity(self.custom_tags.len());
        for (name, shape) in &self.custom_tags {
            let list = path.field("custom_tags");
            let path = list.key(name);
            let value = shape.compile(path, reading);
            tags.extend(value.map(|value| SpanTag {
                name: any_name(path, name, reading),
                value,
            }));
        }
        let sampling = self.sampling(path, reading);
        let direction = reading.choice(path.field("direction"), self.direction.as_ref(), &DIRECTIONS);
        let spawn = self.spawn_upstream_span.as_ref();
        let spawn = reading.choice(path.field("spawn_upstream_span"), spawn, &YES_OR_NO);
        let longest = self.max_path_tag_length.as_ref();
        let longest = longest.and_then(|value| reading.count(path.field("max_path_tag_length"), value, PATH_LENGTHS));
        let Some(provider) = providers.get(&*self.provider) else {
            let known = providers.keys().map(|name| &**name);
            let problem = "is not one of `http.tracing_providers`";
            report_unknown(path.field("provider"), &self.provider, problem, known, reading);
            return None;
        };
        let mut tracing = Tracing::new(provider.clone(), tags);
        tracing.sampling = sampling;
        tracing.direction = direction.unwrap_or_default();
        tracing.has_try_spans = spawn.unwrap_or(false);
        tracing.max_path_tag_length = longest.map_or(Tracing::MAX_PATH_TAG_LENGTH, |length| length as usize);
        Some(tracing)
    }

    fn sampling(&self, path: Path<'_>, reading: &mut Reading) -> Sampling {
        let default = Sampling::default();
        let mut percent = |field, value: &Option<Scalar<'_>>, all: u32| {
            let Some(value) = value else { return all };
            let percent = value.parse().ok();
            let part = percent.and_then(|percent| Sampling::part(percent, all));
            if part.is_none() {
                let remedy = "write a number from 0 to 100, for example 0.5";
                reading.report(path.field(field), value, "is not a percentage", remedy);
            }
            part.unwrap_or_default()
        };
        Sampling {
            client: percent("client_sampling", &self.client_sampling, default.client),
            random: percent("random_sampling", &self.random_sampling, Sampling::RANDOM_ALL),
            overall: percent("overall_sampling", &self.overall_sampling, default.overall),
            by_request_id: {
                let said = self.use_request_id_for_trace_sampling.as_ref();
                let path = path.field("use_request_id_for_trace_sampling");
                reading.choice(path, said, &YES_OR_NO).unwrap_or(default.by_request_id)
            },
        }
    }
}

impl TagShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<TagValue> {
        let fixed = (self.literal.as_ref()).map(|literal| TagValue::Fixed(reading.text(&literal.value)));
        let header = self.header.as_ref().and_then(|header| {
            let default = reading.text_or_empty(header.default_value.as_ref());
            let header_path = path.field("header");
            let name = header_name(header_path.field("name"), &header.name, reading)?;
            Some(TagValue::Header(name, default))
        });
        let environment = self.environment.as_ref().map(|variable| {
            TagValue::environment(&variable.name, variable.default_value.as_deref().unwrap_or_default())
        });
        let told = self.formatter.as_ref().and_then(|formatter| {
            let path = path.field("formatter");
            let format = format(path.field("value"), &formatter.value, Stage::Log, reading)?;
            Some(TagValue::Told(format))
        });
        let metadata = self.metadata.as_ref().map(|metadata| {
            TagValue::Metadata(MetadataTag {
                filter: reading.text(&metadata.key),
                path: metadata.path.iter().map(|part| reading.text(part)).collect(),
                default: reading.text_or_empty(metadata.default_value.as_ref()),
            })
        });
        let said = [
            self.literal.is_some(),
            self.header.is_some(),
            self.environment.is_some(),
            self.formatter.is_some(),
            self.metadata.is_some(),
        ];
        if said.into_iter().filter(|is_said| *is_said).count() != 1 {
            let remedy = "write one of `literal`, `header`, `environment`, `formatter` and `metadata`";
            reading.report(path, "", "a tag comes from exactly one place", remedy);
        }
        fixed.or(header).or(environment).or(told).or(metadata)
    }
}

/// What a route says of its decorator.
pub(super) fn decorator(
    path: Path<'_>,
    shape: Option<&ScalarOr<'_, DecoratorShape<'_>>>,
    reading: &mut Reading,
) -> Option<Decorator> {
    let (operation, propagate) = match shape? {
        ScalarOr::Scalar(operation) => (operation, None),
        ScalarOr::Mapping(shape) => (&shape.operation, shape.propagate.as_ref()),
    };
    if http::HeaderValue::try_from(&**operation).is_err() || operation.is_empty() {
        let remedy = "write a text in one line, for example web.shop.svc.cluster.local:80/*";
        reading.report(path, operation, "is not the name of an operation", remedy);
    }
    let propagates = reading.choice(path.field("propagate"), propagate, &YES_OR_NO);
    Some(Decorator {
        operation: reading.text(operation),
        propagates: propagates.unwrap_or(true),
    })
}
