//! Logs that others keep: `envoy_otel_als` and `envoy_http_als`, in the words of Istio's `extensionProviders`.

use std::collections::BTreeMap;

use http::HeaderName;
use serde::Deserialize;

use super::super::export::{BatchingShape, ExportShape};
use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::{JsonShape, parsed};
use crate::http::Http;
use crate::{Batching, GrpcLog, JsonFormat, OtlpLog};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OtlpLogShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    authority: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    #[serde(default)]
    headers: BTreeMap<Scalar<'a>, Scalar<'a>>,
    batching: Option<BatchingShape<'a>>,
    log_name: Option<Scalar<'a>>,
    #[serde(default)]
    log_format: LogFormatShape<'a>,
    disable_builtin_labels: Option<Scalar<'a>>,
    #[serde(default)]
    resource_attributes: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogFormatShape<'a> {
    #[serde(borrow)]
    text: Option<Scalar<'a>>,
    labels: BTreeMap<Scalar<'a>, JsonShape<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrpcLogShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    authority: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    #[serde(default)]
    headers: BTreeMap<Scalar<'a>, Scalar<'a>>,
    batching: Option<BatchingShape<'a>>,
    log_name: Option<Scalar<'a>>,
    #[serde(default)]
    additional_request_headers_to_log: Vec<Scalar<'a>>,
    #[serde(default)]
    additional_response_headers_to_log: Vec<Scalar<'a>>,
    #[serde(default)]
    additional_response_trailers_to_log: Vec<Scalar<'a>>,
}

impl<'a> OtlpLogShape<'a> {
    fn export<'s>(&'s self, path: Path<'s>) -> ExportShape<'s, 'a> {
        ExportShape {
            path,
            cluster: &self.cluster,
            authority: self.authority.as_ref(),
            timeout: self.timeout.as_ref(),
            headers: &self.headers,
            http: None,
            batching: self.batching.as_ref(),
        }
    }

    pub(super) fn check(&self, path: Path<'_>, http: &Http, reading: &mut Reading) {
        self.export(path).check(http, reading);
    }

    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> OtlpLog {
        let format = path.field("log_format");
        let text = self.log_format.text.as_ref();
        let body = text.and_then(|text| parsed(format.field("text"), text, reading));
        let mut attributes = Vec::with_capacity(self.log_format.labels.len());
        for (name, shape) in &self.log_format.labels {
            let labels = format.field("labels");
            let value = shape.compile(labels.key(name), reading);
            attributes.extend(value.map(|value| (reading.text(name), value)));
        }
        let disabled = reading.choice(
            path.field("disable_builtin_labels"),
            self.disable_builtin_labels.as_ref(),
            &YES_OR_NO,
        );
        let resource = self.resource_attributes.iter();
        OtlpLog {
            export: self.export(path).compile(Batching::LOGS, reading),
            // Istio's defaults.
            log_name: reading.text_or(self.log_name.as_ref(), &"otel_envoy_accesslog".into()),
            has_builtin_labels: !disabled.unwrap_or(false),
            resource: resource
                .map(|(name, value)| (reading.text(name), reading.text(value)))
                .collect(),
            body: body.map(JsonFormat::Text),
            attributes,
        }
    }
}

impl<'a> GrpcLogShape<'a> {
    fn export<'s>(&'s self, path: Path<'s>) -> ExportShape<'s, 'a> {
        ExportShape {
            path,
            cluster: &self.cluster,
            authority: self.authority.as_ref(),
            timeout: self.timeout.as_ref(),
            headers: &self.headers,
            http: None,
            batching: self.batching.as_ref(),
        }
    }

    pub(super) fn check(&self, path: Path<'_>, http: &Http, reading: &mut Reading) {
        self.export(path).check(http, reading);
    }

    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> GrpcLog {
        let mut names = |field, list: &[Scalar<'_>]| {
            let path = path.field(field);
            let mut names = Vec::with_capacity(list.len());
            for (index, name) in list.iter().enumerate() {
                match HeaderName::try_from(&**name) {
                    Ok(name) => names.push(name),
                    Err(_) => {
                        let remedy = "use letters, digits and hyphens (RFC 9110, section 5.1)";
                        reading.report(path.item(index), name, "is not the name of a header field", remedy);
                    }
                }
            }
            names
        };
        let of_requests = names(
            "additional_request_headers_to_log",
            &self.additional_request_headers_to_log,
        );
        let of_responses = names(
            "additional_response_headers_to_log",
            &self.additional_response_headers_to_log,
        );
        let of_trailers = names(
            "additional_response_trailers_to_log",
            &self.additional_response_trailers_to_log,
        );
        GrpcLog {
            export: self.export(path).compile(Batching::LOGS, reading),
            log_name: reading.text_or(self.log_name.as_ref(), &"http_envoy_accesslog".into()),
            request_headers: of_requests,
            response_headers: of_responses,
            response_trailers: of_trailers,
        }
    }
}
