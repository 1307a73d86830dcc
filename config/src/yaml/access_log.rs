//! `access_log:`: a log, or a list of them. At most one is in the proxy's own format, which has lines of connections, too; the others have lines of HTTP
//! requests, in Envoy's words.

mod remote;

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::reading::{Path, Reading, YES_OR_NO};
use super::scalar::Scalar;
use crate::http::{Format, Http, Stage};
use crate::{
    AccessLog, Expression, ISTIO_JSON, ISTIO_TEXT, JsonFormat, LogFilter, LogFormat, LogTo, RESPONSE_FLAGS,
    RequestFormat, RequestLog, Text,
};
use remote::{GrpcLogShape, OtlpLogShape};

/// One log, or several.
#[derive(Debug)]
pub(super) enum AccessLogShape<'a> {
    One(Box<LogShape<'a>>),
    Several(Vec<LogShape<'a>>),
}

impl Default for AccessLogShape<'_> {
    fn default() -> Self {
        Self::One(Box::default())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogShape<'a> {
    #[serde(borrow)]
    path: Option<Scalar<'a>>,
    format: Option<Scalar<'a>>,
    text_format: Option<Scalar<'a>>,
    json_format: Option<JsonShape<'a>>,
    omit_empty_values: Option<Scalar<'a>>,
    filter: Option<FilterShape<'a>>,
    envoy_otel_als: Option<OtlpLogShape<'a>>,
    envoy_http_als: Option<GrpcLogShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FilterShape<'a> {
    #[serde(borrow)]
    status_codes: Vec<Scalar<'a>>,
    response_flags: Option<Vec<Scalar<'a>>>,
    expression: Option<Scalar<'a>>,
}

/// Anything that JSON can be made like.
#[derive(Debug)]
enum JsonShape<'a> {
    Text(Scalar<'a>),
    Fixed(serde_json::Value),
    Object(Vec<(Scalar<'a>, JsonShape<'a>)>),
    List(Vec<JsonShape<'a>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for AccessLogShape<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LogVisitor(PhantomData))
    }
}

struct LogVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for LogVisitor<'a> {
    type Value = AccessLogShape<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, or a list of mappings")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let log = LogShape::deserialize(MapAccessDeserializer::new(map))?;
        Ok(AccessLogShape::One(Box::new(log)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(AccessLogShape::Several)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonShape<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor(PhantomData))
    }
}

struct JsonVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for JsonVisitor<'a> {
    type Value = JsonShape<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true or false, a mapping or a list")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(JsonShape::Text(Scalar::borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(JsonShape::Text(Scalar::owned(text)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(JsonShape::Fixed(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(JsonShape::Fixed(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(JsonShape::Fixed(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(JsonShape::Fixed(value.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(JsonShape::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(JsonShape::List)
    }
}

/// What `format` names.
#[derive(Clone, Copy)]
enum Named {
    Own(LogFormat),
    IstioText,
    IstioJson,
}

const FORMATS: [(&str, Named); 5] = [
    ("text", Named::Own(LogFormat::Text)),
    ("json", Named::Own(LogFormat::Json)),
    ("off", Named::Own(LogFormat::Off)),
    ("istio", Named::IstioText),
    ("istio-json", Named::IstioJson),
];

/// What a log turns out to be.
enum Compiled {
    Own(LogFormat, PathBuf),
    OfRequests(Box<RequestLog>),
}

impl AccessLogShape<'_> {
    /// Reports clusters that logs are to be told to and that can't be.
    pub(super) fn check(&self, path: Path<'_>, http: &Http, reading: &mut Reading) {
        match self {
            Self::One(log) => log.check(path, http, reading),
            Self::Several(several) => {
                for (index, log) in several.iter().enumerate() {
                    log.check(path.item(index), http, reading);
                }
            }
        }
    }

    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> AccessLog {
        let mut logs = AccessLog {
            format: LogFormat::Off,
            ..AccessLog::default()
        };
        match self {
            Self::One(log) => add(&mut logs, log.compile(path, reading)),
            Self::Several(several) => {
                let mut own = None;
                for (index, log) in several.iter().enumerate() {
                    let compiled = log.compile(path.item(index), reading);
                    if matches!(compiled, Some(Compiled::Own(..)))
                        && let Some(first) = own.replace(index)
                    {
                        let problem = format!("{path}[{first}] is in the proxy's own format already");
                        let remedy = "write `text_format`, `json_format` or `format: istio`, or remove one";
                        reading.report(path.item(index), "", problem, remedy);
                    }
                    add(&mut logs, compiled);
                }
            }
        }
        logs
    }
}

fn add(logs: &mut AccessLog, log: Option<Compiled>) {
    match log {
        None => {}
        Some(Compiled::Own(format, path)) => (logs.format, logs.path) = (format, path),
        Some(Compiled::OfRequests(log)) => logs.requests.push(*log),
    }
}

impl LogShape<'_> {
    fn check(&self, path: Path<'_>, http: &Http, reading: &mut Reading) {
        if let Some(shape) = &self.envoy_otel_als {
            shape.check(path.field("envoy_otel_als"), http, reading);
        }
        if let Some(shape) = &self.envoy_http_als {
            shape.check(path.field("envoy_http_als"), http, reading);
        }
    }

    /// The log that someone else keeps, if it is one; what is for lines has no place in it.
    fn remote(&self, path: Path<'_>, reading: &mut Reading) -> Option<LogTo> {
        let otlp = self.envoy_otel_als.as_ref();
        let otlp = otlp.map(|shape| LogTo::OpenTelemetry(shape.compile(path.field("envoy_otel_als"), reading)));
        let grpc = self.envoy_http_als.as_ref();
        let grpc = grpc.map(|shape| LogTo::Grpc(shape.compile(path.field("envoy_http_als"), reading)));
        let of_lines = [
            self.path.is_some(),
            self.format.is_some(),
            self.text_format.is_some(),
            self.json_format.is_some(),
            self.omit_empty_values.is_some(),
            otlp.is_some() && grpc.is_some(),
        ];
        if (otlp.is_some() || grpc.is_some()) && of_lines.contains(&true) {
            let remedy = "write a log of its own for each: `path` and formats are for files";
            reading.report(path, "", "goes to more than one place", remedy);
        }
        otlp.or(grpc)
    }

    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<Compiled> {
        let to = reading.nonempty_or(path.field("path"), self.path.as_ref(), &"-".into());
        let to = PathBuf::from(to.as_ref());
        let filter = (self.filter.as_ref()).map(|filter| filter.compile(path.field("filter"), reading));
        if let Some(to) = self.remote(path, reading) {
            let filter = filter.unwrap_or_default();
            return Some(Compiled::OfRequests(Box::new(RequestLog { to, filter })));
        }
        let omits_empty = reading
            .choice(
                path.field("omit_empty_values"),
                self.omit_empty_values.as_ref(),
                &YES_OR_NO,
            )
            .unwrap_or(false);
        let format = match self.request_format(path, omits_empty, reading)? {
            Ok(format) => format,
            Err(own) => {
                for (field, is_said) in [
                    ("filter", self.filter.is_some()),
                    ("omit_empty_values", self.omit_empty_values.is_some()),
                ] {
                    if is_said {
                        let problem = "is for logs in Envoy's words, and this one is in the proxy's own";
                        let remedy = "remove it, or write `text_format`, `json_format` or `format: istio`";
                        reading.report(path.field(field), "", problem, remedy);
                    }
                }
                return Some(Compiled::Own(own, to));
            }
        };
        Some(Compiled::OfRequests(Box::new(RequestLog {
            to: LogTo::File { path: to, format },
            filter: filter.unwrap_or_default(),
        })))
    }

    /// The format of lines of requests, or else the proxy's own.
    fn request_format(
        &self,
        path: Path<'_>,
        omits_empty: bool,
        reading: &mut Reading,
    ) -> Option<Result<RequestFormat, LogFormat>> {
        let formats = [
            self.format.is_some(),
            self.text_format.is_some(),
            self.json_format.is_some(),
        ];
        if formats.iter().filter(|is_said| **is_said).count() > 1 {
            let remedy = "write one of `format`, `text_format` and `json_format`";
            reading.report(path, "", "has several formats", remedy);
            return None;
        }
        let text = |format| RequestFormat::Text { format, omits_empty };
        let json = |format| RequestFormat::Json { format, omits_empty };
        if let Some(written) = &self.text_format {
            let format = parsed(path.field("text_format"), written, reading)?;
            return Some(Ok(text(format)));
        }
        if let Some(shape) = &self.json_format {
            let path = path.field("json_format");
            let format = shape.compile(path, reading)?;
            if !matches!(format, JsonFormat::Object(_)) {
                let remedy = "write for example `json_format: {status: \"%RESPONSE_CODE%\"}`";
                reading.report(path, "", "is no mapping", remedy);
                return None;
            }
            return Some(Ok(json(format)));
        }
        let named = match &self.format {
            None => Named::Own(LogFormat::default()),
            named => reading.choice(path.field("format"), named.as_ref(), &FORMATS)?,
        };
        Some(match named {
            Named::Own(own) => Err(own),
            Named::IstioText => Ok(text(parsed(path, ISTIO_TEXT, reading)?)),
            Named::IstioJson => {
                let mut fields = Vec::with_capacity(ISTIO_JSON.len());
                for (name, value) in ISTIO_JSON {
                    fields.push((name.to_owned(), JsonFormat::Text(parsed(path, value, reading)?)));
                }
                Ok(json(JsonFormat::Object(fields)))
            }
        })
    }
}

fn parsed(path: Path<'_>, text: &str, reading: &mut Reading) -> Option<Format> {
    match Format::parse(text, Stage::Log) {
        Ok(format) => Some(format),
        Err(error) => {
            reading.report(path, text, error.to_string(), error.remedy(Stage::Log));
            None
        }
    }
}

impl JsonShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<JsonFormat> {
        Some(match self {
            Self::Text(text) => JsonFormat::Text(parsed(path, text, reading)?),
            Self::Fixed(value) => JsonFormat::Fixed(value.clone()),
            Self::Object(fields) => {
                let mut compiled = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    compiled.push((name.to_string(), value.compile(path.key(name), reading)?));
                }
                JsonFormat::Object(compiled)
            }
            Self::List(items) => {
                let mut compiled = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    compiled.push(item.compile(path.item(index), reading)?);
                }
                JsonFormat::List(compiled)
            }
        })
    }
}

impl FilterShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> LogFilter {
        let mut filter = LogFilter::default();
        for (index, range) in self.status_codes.iter().enumerate() {
            match status_codes(range) {
                Some(range) => filter.status_codes.push(range),
                None => {
                    let remedy = "write a status, or a range of them, from 0 (no answer) to 599: 404 or 500-599";
                    let path = path.field("status_codes");
                    reading.report(path.item(index), range, "is no status", remedy);
                }
            }
        }
        filter.response_flags = self.response_flags.as_ref().map(|flags| {
            let path = path.field("response_flags");
            let flags = flags.iter().enumerate();
            flags
                .filter_map(|(index, flag)| response_flag(path.item(index), flag, reading))
                .collect()
        });
        if let Some(text) = &self.expression {
            match Expression::parse(text) {
                Ok(expression) => filter.expression = Some(expression),
                Err(error) => {
                    let path = path.field("expression");
                    reading.report(path, text, error.to_string(), error.remedy());
                }
            }
        }
        filter
    }
}

/// `404` or `500-599`.
fn status_codes(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| text.trim().parse::<u16>().ok().filter(|code| *code <= 599);
    let (first, last) = (code(first)?, code(last)?);
    (first <= last).then_some(first..=last)
}

fn response_flag(path: Path<'_>, flag: &str, reading: &mut Reading) -> Option<Text> {
    /// The proxy's own, as in the log of connections.
    const OWN: [&str; 2] = ["DENY", "DRAIN"];
    let known = || RESPONSE_FLAGS.iter().map(|(short, _)| *short).chain(OWN);
    if !known().any(|known| known == flag) {
        let remedy = format!("write one of: {}", known().collect::<Vec<_>>().join(", "));
        reading.report(path, flag, "is no response flag", remedy);
        return None;
    }
    Some(reading.text(flag))
}
