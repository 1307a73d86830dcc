//! Access logs. Those in files are written; others are told of as left out. No request depends on one, so what is not understood of one closes nothing.

use std::ops::RangeInclusive;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use underpass_config::http::{Format, Stage};
use underpass_config::{Expression, ISTIO_TEXT, JsonFormat, LogFilter, LogTo, RequestFormat, RequestLog};

use super::super::inspection::type_name;
use super::super::refusal::{At, Refused, only_if};
use super::super::values::unpack;
use crate::proto::envoy::config::accesslog::v3 as wire;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::access_loggers::file::v3 as file;
use crate::proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use base::substitution_format_string::Format as Written;
use wire::access_log_filter::FilterSpecifier;
use wire::comparison_filter::Op;

/// The logs that are written. What is not is put into `left_out`.
pub(in super::super) fn translate(logs: &[wire::AccessLog], left_out: &mut Vec<Refused>) -> Vec<RequestLog> {
    let mut written = Vec::new();
    for (index, log) in logs.iter().enumerate() {
        match translate_one(log).item(index).at("access_log") {
            Ok(log) => written.push(log),
            Err(why) => left_out.push(why),
        }
    }
    written
}

fn translate_one(wire: &wire::AccessLog) -> Result<RequestLog, Refused> {
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
    if type_name(any) != "envoy.extensions.access_loggers.file.v3.FileAccessLog" {
        let why = format!("is a `{}`: logs go to files only, yet", type_name(any));
        return Err(Refused::new("typed_config", why));
    }
    let file::FileAccessLog {
        path,
        access_log_format,
    } = unpack(Some(any)).at("typed_config")?;
    let format = match access_log_format {
        Some(file::file_access_log::AccessLogFormat::LogFormat(format)) => request_format(&format),
        None => text_format(ISTIO_TEXT, false),
    };
    let mut conditions = LogFilter::default();
    if let Some(filter) = filter {
        narrow(filter, &mut conditions, 0).at("filter")?;
    }
    Ok(RequestLog {
        to: LogTo::File {
            path: path.into(),
            format: format.at("typed_config.log_format")?,
        },
        filter: conditions,
    })
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
