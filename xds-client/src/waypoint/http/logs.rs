//! Access logs. No request depends on one, so what is not understood of one closes nothing.

use std::ops::RangeInclusive;
use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use underpass_config::http::{Format, Stage};
use underpass_config::{
    Batching, Export, Expression, GrpcLog, ISTIO_TEXT, JsonFormat, LogFilter, LogTo, OtlpLog, RequestFormat,
    RequestLog, Text,
};

use super::super::inspection::type_name;
use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_name, unpack};
use super::export;
use crate::proto::envoy::config::accesslog::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::access_loggers::file::v3 as file;
use crate::proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use crate::proto::envoy::extensions::access_loggers::grpc::v3 as grpc;
use crate::proto::envoy::extensions::access_loggers::open_telemetry::v3 as open_telemetry;
use crate::proto::opentelemetry::proto::common::v1 as otlp;
use base::substitution_format_string::Format as Written;
use wire::access_log_filter::FilterSpecifier;
use wire::comparison_filter::Op;

/// The logs that are written; none, if there is none. What is not is put into `left_out`.
pub(in super::super) fn translate(
    logs: &[wire::AccessLog],
    left_out: &mut Vec<Refused>,
) -> Option<Arc<Vec<RequestLog>>> {
    let mut written = Vec::new();
    for (index, log) in logs.iter().enumerate() {
        let mut lost = Vec::new();
        let within = |why: Refused| why.within(&format!("access_log[{index}]"));
        match translate_one(log, &mut lost) {
            Ok(log) => written.push(log),
            Err(why) => left_out.push(within(why)),
        }
        left_out.extend(lost.into_iter().map(within));
    }
    (!written.is_empty()).then(|| Arc::new(written))
}

fn translate_one(wire: &wire::AccessLog, left_out: &mut Vec<Refused>) -> Result<RequestLog, Refused> {
    let wire::AccessLog {
        // A label: the type decides.
        name: _,
        filter,
        config_type,
    } = wire;
    let any = config_type
        .as_ref()
        .map(|wire::access_log::ConfigType::TypedConfig(any)| any);
    let any = any.ok_or_else(|| Refused::missing("typed_config"))?;
    let to = match type_name(any).strip_prefix("envoy.extensions.access_loggers.") {
        Some("file.v3.FileAccessLog") => unpack(Some(any)).and_then(|wire| to_file(&wire)),
        Some("open_telemetry.v3.OpenTelemetryAccessLogConfig") => {
            unpack(Some(any)).and_then(|wire| to_collector(&wire))
        }
        Some("grpc.v3.HttpGrpcAccessLogConfig") => unpack(Some(any)).and_then(|wire| to_server(&wire, left_out)),
        _ => Err(Refused::unsupported("", format!("a `{}`", type_name(any)))),
    };
    let mut conditions = LogFilter::default();
    if let Some(filter) = filter {
        narrow(filter, &mut conditions, 0).at("filter")?;
    }
    Ok(RequestLog {
        to: to.at("typed_config")?,
        filter: conditions,
    })
}

fn to_file(wire: &file::FileAccessLog) -> Result<LogTo, Refused> {
    let file::FileAccessLog {
        path,
        access_log_format,
    } = wire;
    let format = match access_log_format {
        Some(file::file_access_log::AccessLogFormat::LogFormat(format)) => request_format(format),
        None => text_format(ISTIO_TEXT, false),
    };
    Ok(LogTo::File {
        path: path.into(),
        format: format.at("log_format")?,
    })
}

/// Who is told, and the log's name. `left_out`: what its entries don't have, if it is of a kind of which they should.
fn common(
    wire: Option<&grpc::CommonGrpcAccessLogConfig>,
    left_out: Option<&mut Vec<Refused>>,
) -> Result<(Export, Text), Refused> {
    let grpc::CommonGrpcAccessLogConfig {
        log_name,
        grpc_service,
        filter_state_objects_to_log,
        transport_api_version,
    } = wire.ok_or_else(|| Refused::missing(""))?;
    let is_v3 = *transport_api_version == base::ApiVersion::V3 as i32;
    only_if(is_v3, "transport_api_version", "is not V3")?;
    let service = grpc_service.as_ref().ok_or_else(|| Refused::missing("grpc_service"))?;
    let export = export::by_grpc(service, Batching::LOGS).at("grpc_service")?;
    if let (Some(left_out), false) = (left_out, filter_state_objects_to_log.is_empty()) {
        let why = "are objects of Envoy's: entries do not have them";
        left_out.push(Refused::new("filter_state_objects_to_log", why));
    }
    Ok((export, log_name.as_str().into()))
}

fn to_collector(wire: &open_telemetry::OpenTelemetryAccessLogConfig) -> Result<LogTo, Refused> {
    let open_telemetry::OpenTelemetryAccessLogConfig {
        common_config,
        body,
        attributes,
        resource_attributes,
        disable_builtin_labels,
    } = wire;
    // Envoy's tells collectors of no such objects either.
    let (export, log_name) = common(common_config.as_ref(), None).at("common_config")?;
    let mut named = Vec::new();
    for (name, text) in texts("attributes.values", attributes.as_ref())? {
        named.push((name, JsonFormat::Text(parsed(text).at("attributes.values")?)));
    }
    let of = texts("resource_attributes.values", resource_attributes.as_ref())?;
    let body = body
        .as_ref()
        .map(|body| string(body).and_then(parsed))
        .transpose()
        .at("body")?;
    Ok(LogTo::OpenTelemetry(OtlpLog {
        export,
        log_name,
        has_builtin_labels: !disable_builtin_labels,
        resource: of.into_iter().map(|(name, text)| (name, text.into())).collect(),
        body: body.map(JsonFormat::Text),
        attributes: named,
    }))
}

/// Names with texts.
fn texts<'w>(field: &str, wire: Option<&'w otlp::KeyValueList>) -> Result<Vec<(Text, &'w str)>, Refused> {
    let pairs = wire.into_iter().flat_map(|list| &list.values);
    each(field, pairs, |otlp::KeyValue { key, value }| {
        let value = value.as_ref().ok_or_else(|| Refused::missing("value"))?;
        Ok((key.as_str().into(), string(value).at("value")?))
    })
}

fn string(wire: &otlp::AnyValue) -> Result<&str, Refused> {
    match &wire.value {
        Some(otlp::any_value::Value::StringValue(text)) => Ok(text),
        None => Err(Refused::missing("string_value")),
    }
}

fn to_server(wire: &grpc::HttpGrpcAccessLogConfig, left_out: &mut Vec<Refused>) -> Result<LogTo, Refused> {
    let grpc::HttpGrpcAccessLogConfig {
        common_config,
        additional_request_headers_to_log,
        additional_response_headers_to_log,
        additional_response_trailers_to_log,
    } = wire;
    let mut lost = Vec::new();
    let (export, log_name) = common(common_config.as_ref(), Some(&mut lost)).at("common_config")?;
    left_out.extend(lost.into_iter().map(|why| why.within("typed_config.common_config")));
    let names = |field, list| each(field, list, |name: &String| field_name(name));
    Ok(LogTo::Grpc(GrpcLog {
        export,
        log_name,
        request_headers: names("additional_request_headers_to_log", additional_request_headers_to_log)?,
        response_headers: names("additional_response_headers_to_log", additional_response_headers_to_log)?,
        response_trailers: names(
            "additional_response_trailers_to_log",
            additional_response_trailers_to_log,
        )?,
    }))
}

fn parsed(text: &str) -> Result<Format, Refused> {
    Format::parse(text, Stage::Log).map_err(|why| Refused::new("", why.to_string()))
}

fn text_format(text: &str, omits_empty: bool) -> Result<RequestFormat, Refused> {
    let format = parsed(text)?;
    Ok(RequestFormat::Text { format, omits_empty })
}

/// The text of a format that is in the configuration.
pub(in super::super) fn inline(wire: &base::SubstitutionFormatString) -> Option<&str> {
    match &wire.format {
        Some(Written::TextFormatSource(base::DataSource {
            specifier: Some(base::data_source::Specifier::InlineString(text)),
        })) => Some(text),
        _ => None,
    }
}

fn request_format(wire: &base::SubstitutionFormatString) -> Result<RequestFormat, Refused> {
    let base::SubstitutionFormatString {
        format,
        omit_empty_values,
        // Operators that Envoy needs extensions for; those that are known here are, and others are refused where they stand.
        formatters: _,
        // The order of fields, where Envoy does not sort them; they are sorted here.
        json_format_options: _,
    } = wire;
    match format {
        Some(Written::JsonFormat(fields)) => Ok(RequestFormat::Json {
            format: object(fields)?,
            omits_empty: *omit_empty_values,
        }),
        Some(Written::TextFormatSource(_)) => {
            let text =
                inline(wire).ok_or_else(|| Refused::unsupported("text_format_source", "not in the configuration"));
            text_format(text?, *omit_empty_values)
        }
        None => Err(Refused::missing("format")),
    }
}

fn object(wire: &Struct) -> Result<JsonFormat, Refused> {
    let fields = wire.fields.iter().map(|(name, value)| {
        let value = value_format(value).at(&format!("json_format[{name}]"))?;
        Ok((name.clone(), value))
    });
    fields.collect::<Result<_, _>>().map(JsonFormat::Object)
}

fn value_format(wire: &Value) -> Result<JsonFormat, Refused> {
    Ok(match &wire.kind {
        Some(Kind::StringValue(text)) => JsonFormat::Text(parsed(text)?),
        Some(Kind::BoolValue(is)) => JsonFormat::Fixed((*is).into()),
        Some(Kind::NumberValue(number)) => JsonFormat::Fixed((*number).into()),
        Some(Kind::NullValue(_)) | None => JsonFormat::Fixed(serde_json::Value::Null),
        Some(Kind::StructValue(fields)) => object(fields)?,
        Some(Kind::ListValue(list)) => {
            let items = list.values.iter().map(value_format);
            JsonFormat::List(items.collect::<Result<_, _>>()?)
        }
    })
}

/// Adds what a filter asks: all of it has to hold.
fn narrow(wire: &wire::AccessLogFilter, conditions: &mut LogFilter, depth: usize) -> Result<(), Refused> {
    const DEEPEST: usize = 8;
    only_if(depth < DEEPEST, "", "has too many levels")?;
    match &wire.filter_specifier {
        Some(FilterSpecifier::AndFilter(wire::AndFilter { filters })) => {
            for (index, filter) in filters.iter().enumerate() {
                narrow(filter, conditions, depth + 1)
                    .item(index)
                    .at("and_filter.filters")?;
            }
        }
        Some(FilterSpecifier::StatusCodeFilter(wire::StatusCodeFilter { comparison })) => {
            let is_first = conditions.status_codes.is_empty();
            only_if(is_first, "status_code_filter", "is there twice, which is not supported")?;
            let range = comparison
                .as_ref()
                .ok_or_else(|| Refused::missing("comparison"))
                .and_then(statuses);
            conditions.status_codes = range.at("status_code_filter")?;
        }
        Some(FilterSpecifier::ResponseFlagFilter(wire::ResponseFlagFilter { flags })) => {
            let is_first = conditions.response_flags.is_none();
            only_if(
                is_first,
                "response_flag_filter",
                "is there twice, which is not supported",
            )?;
            conditions.response_flags = Some(flags.iter().map(|flag| flag.as_str().into()).collect());
        }
        Some(FilterSpecifier::ExtensionFilter(wire::ExtensionFilter { name: _, config_type })) => {
            let any = config_type
                .as_ref()
                .map(|wire::extension_filter::ConfigType::TypedConfig(any)| any);
            let ExpressionFilter { expression } = unpack(any).at("extension_filter.typed_config")?;
            let is_first = conditions.expression.is_none();
            only_if(is_first, "extension_filter", "is there twice, which is not supported")?;
            let parsed = Expression::parse(&expression);
            let parsed =
                parsed.map_err(|why| Refused::new("extension_filter.typed_config.expression", why.to_string()))?;
            conditions.expression = Some(parsed);
        }
        None => return Err(Refused::missing("filter_specifier")),
    }
    Ok(())
}

fn statuses(wire: &wire::ComparisonFilter) -> Result<Vec<RangeInclusive<u16>>, Refused> {
    const MOST: u16 = 599;
    let wire::ComparisonFilter { op, value } = wire;
    let base::RuntimeUInt32 {
        default_value,
        // There is no runtime here that could say another.
        runtime_key: _,
    } = value.as_ref().ok_or_else(|| Refused::missing("comparison.value"))?;
    let code = u16::try_from(*default_value).ok().filter(|code| *code <= MOST);
    let code = code.ok_or_else(|| Refused::unsupported("comparison.value", default_value))?;
    match Op::try_from(*op) {
        Ok(Op::Eq) => Ok(vec![code..=code]),
        Ok(Op::Ge) => Ok(vec![code..=MOST]),
        Ok(Op::Le) => Ok(vec![0..=code]),
        Ok(Op::Ne) => Ok(vec![0..=code.saturating_sub(1), code + 1..=MOST]),
        Err(_) => Err(Refused::unsupported("comparison.op", op)),
    }
}
