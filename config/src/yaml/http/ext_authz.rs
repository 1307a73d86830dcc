//! `ext_authz_providers`: who may be asked by policies whose action is CUSTOM. The words are those of Istio's `extensionProviders`
//! (`envoyExtAuthzHttp`, `envoyExtAuthzGrpc`), with one of `http.clusters` in the place of a service and its port.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use http::HeaderValue;
use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::actions::{host_value, path_value, status};
use super::forward::check_cluster;
use super::headers::{editable, header_text};
use super::retry::REPLAY;
use crate::Text;
use crate::http::{
    AppendAction, AuthzBody, AuthzProvider, AuthzService, Forward, HeaderEdit, HeaderEdits, Http, HttpAuthz, Labels,
    Stage, TextMatch, UpstreamProtocol, WeightedCluster,
};

/// Providers by name.
pub(super) type Providers = HashMap<Text, Arc<AuthzProvider>, RandomState>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProviderShape<'a> {
    #[serde(borrow)]
    pub(super) name: Scalar<'a>,
    envoy_ext_authz_http: Option<ServerShape<'a>>,
    envoy_ext_authz_grpc: Option<ServerShape<'a>>,
}

/// A server of either protocol; some fields are for one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    timeout: Option<Scalar<'a>>,
    fail_open: Option<Scalar<'a>>,
    status_on_error: Option<Scalar<'a>>,
    clear_route_cache: Option<Scalar<'a>>,
    include_request_body_in_check: Option<BodyShape<'a>>,
    authority: Option<Scalar<'a>>,
    path_prefix: Option<Scalar<'a>>,
    include_request_headers_in_check: Option<Vec<Scalar<'a>>>,
    include_additional_headers_in_check: Option<BTreeMap<Scalar<'a>, Scalar<'a>>>,
    headers_to_upstream_on_allow: Option<Vec<Scalar<'a>>>,
    headers_to_downstream_on_deny: Option<Vec<Scalar<'a>>>,
    headers_to_downstream_on_allow: Option<Vec<Scalar<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyShape<'a> {
    #[serde(borrow)]
    max_request_bytes: Scalar<'a>,
    allow_partial_message: Option<Scalar<'a>>,
    pack_as_bytes: Option<Scalar<'a>>,
}

/// istiod's, where the mesh configuration says none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// Each request holds so much of its body at most.
const BODY: RangeInclusive<u32> = 1..=*REPLAY.end();

impl ProviderShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<AuthzProvider> {
        let name = reading.name(path.field("name"), &self.name);
        match (&self.envoy_ext_authz_http, &self.envoy_ext_authz_grpc) {
            (Some(shape), None) => {
                let path = path.field("envoy_ext_authz_http");
                let (service, sent) = shape.by_http(path, reading);
                shape.compile(path, (name, service, Some(sent)), http, reading)
            }
            (None, Some(shape)) => {
                let path = path.field("envoy_ext_authz_grpc");
                let service = shape.by_grpc(path, http, reading)?;
                shape.compile(path, (name, service, None), http, reading)
            }
            _ => {
                let remedy = "write one of `envoy_ext_authz_http` and `envoy_ext_authz_grpc`";
                reading.report(path, &self.name, "speaks exactly one protocol", remedy);
                None
            }
        }
    }
}

impl ServerShape<'_> {
    /// How it is asked by HTTP, and which of the client's fields it is told.
    fn by_http(&self, path: Path<'_>, reading: &mut Reading) -> (AuthzService, Vec<TextMatch>) {
        self.has_none_of([("authority", self.authority.is_some())], path, reading);
        let prefix = self.path_prefix.as_ref();
        let prefix = prefix.map(|value| path_value(path.field("path_prefix"), value, reading));
        let mut names = |field, list: &Option<Vec<Scalar<'_>>>| {
            let list = list.as_deref().unwrap_or_default();
            names(path.field(field), list, reading)
        };
        let sent = names(
            "include_request_headers_in_check",
            &self.include_request_headers_in_check,
        );
        let service = HttpAuthz {
            path_prefix: prefix.unwrap_or_default(),
            allowed_upstream_headers: names("headers_to_upstream_on_allow", &self.headers_to_upstream_on_allow),
            allowed_client_headers: names("headers_to_downstream_on_deny", &self.headers_to_downstream_on_deny),
            allowed_client_headers_on_success: names(
                "headers_to_downstream_on_allow",
                &self.headers_to_downstream_on_allow,
            ),
            headers_to_add: self.additional(path.field("include_additional_headers_in_check"), reading),
        };
        (AuthzService::Http(service), sent)
    }

    fn additional(&self, path: Path<'_>, reading: &mut Reading) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        for (name, value) in self.include_additional_headers_in_check.iter().flatten() {
            let path = path.key(name);
            let name = editable(path, name, reading);
            let value = header_text(path, value, Stage::Request, reading);
            if let (Some(name), Some(value)) = (name, value) {
                let action = AppendAction::Set;
                edits.edits.push(HeaderEdit { name, value, action });
            }
        }
        edits
    }

    /// By whose name it is asked by gRPC.
    fn by_grpc(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Option<AuthzService> {
        let of_http = [
            ("path_prefix", self.path_prefix.is_some()),
            (
                "include_request_headers_in_check",
                self.include_request_headers_in_check.is_some(),
            ),
            (
                "include_additional_headers_in_check",
                self.include_additional_headers_in_check.is_some(),
            ),
            (
                "headers_to_upstream_on_allow",
                self.headers_to_upstream_on_allow.is_some(),
            ),
            (
                "headers_to_downstream_on_deny",
                self.headers_to_downstream_on_deny.is_some(),
            ),
            (
                "headers_to_downstream_on_allow",
                self.headers_to_downstream_on_allow.is_some(),
            ),
        ];
        self.has_none_of(of_http, path, reading);
        let authority = match &self.authority {
            Some(authority) => host_value(path.field("authority"), authority, reading)?,
            // Names that are no hosts have a host by which they are asked for nevertheless.
            None => HeaderValue::try_from(&*self.cluster)
                .ok()
                .filter(|_| self.cluster.parse::<http::uri::Authority>().is_ok())
                .unwrap_or(HeaderValue::from_static("ext-authz")),
        };
        if let Some(cluster) = http.cluster(&self.cluster) {
            let speaks = [UpstreamProtocol::Http2, UpstreamProtocol::Negotiated];
            if !speaks.contains(&cluster.settings.protocol) {
                let remedy = "write `protocol: http2` in the cluster";
                reading.report(path.field("cluster"), &self.cluster, "does not speak HTTP/2", remedy);
            }
        }
        Some(AuthzService::Grpc(authority))
    }

    /// Reports fields of the other protocol.
    fn has_none_of<const COUNT: usize>(
        &self,
        fields: [(&'static str, bool); COUNT],
        path: Path<'_>,
        reading: &mut Reading,
    ) {
        for (field, _) in fields.into_iter().filter(|(_, is_given)| *is_given) {
            let problem = "is for servers of the other protocol";
            reading.report(path.field(field), "", problem, "remove it");
        }
    }

    /// What both kinds say.
    fn compile(
        &self,
        path: Path<'_>,
        (name, service, allowed_headers): (Text, AuthzService, Option<Vec<TextMatch>>),
        http: &Http,
        reading: &mut Reading,
    ) -> Option<AuthzProvider> {
        check_cluster(path.field("cluster"), &self.cluster, http, reading);
        let timeout = reading.duration(path.field("timeout"), self.timeout.as_ref(), DEFAULT_TIMEOUT);
        let of_error = self.status_on_error.as_ref();
        let of_error = of_error.and_then(|value| status(path.field("status_on_error"), value, reading));
        let mut flag = |field, value: &Option<Scalar<'_>>| {
            let word = reading.choice(path.field(field), value.as_ref(), &YES_OR_NO);
            word.unwrap_or(false)
        };
        let failure_mode_allow = flag("fail_open", &self.fail_open);
        let clear_route_cache = flag("clear_route_cache", &self.clear_route_cache);
        let body = path.field("include_request_body_in_check");
        let shape = self.include_request_body_in_check.as_ref();
        let mut forward = Forward::new(vec![WeightedCluster {
            cluster: reading.text(&self.cluster),
            weight: 1,
            labels: Labels::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }])?;
        forward.timeout = Some(timeout);
        Some(AuthzProvider {
            name,
            forward,
            service,
            allowed_headers,
            request_body: shape.and_then(|shape| shape.compile(body, reading)),
            failure_mode_allow,
            status_on_error: of_error.unwrap_or(AuthzProvider::DEFAULT_STATUS_ON_ERROR),
            clear_route_cache,
        })
    }
}

impl BodyShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<AuthzBody> {
        let most = reading.count(path.field("max_request_bytes"), &self.max_request_bytes, BODY);
        let mut flag = |field, value: &Option<Scalar<'_>>| {
            let word = reading.choice(path.field(field), value.as_ref(), &YES_OR_NO);
            word.unwrap_or(false)
        };
        Some(AuthzBody {
            allow_partial_message: flag("allow_partial_message", &self.allow_partial_message),
            pack_as_bytes: flag("pack_as_bytes", &self.pack_as_bytes),
            max_request_bytes: most? as usize,
        })
    }
}

/// Names of header fields, perhaps with a star at one end, whatever their case.
fn names(path: Path<'_>, list: &[Scalar<'_>], reading: &mut Reading) -> Vec<TextMatch> {
    let matches = list.iter().enumerate().map(|(index, value)| {
        let name = value.to_ascii_lowercase();
        let matched = match (name.strip_suffix('*'), name.strip_prefix('*')) {
            (Some(prefix), _) => TextMatch::Prefix(prefix.to_owned()),
            (None, Some(suffix)) => TextMatch::Suffix(suffix.to_owned()),
            (None, None) => TextMatch::Exact(name.clone()),
        };
        if name.is_empty() || name.trim_matches('*').contains('*') || name.contains(char::is_whitespace) {
            let remedy = "write the name of a header field, or one with a star at one end, for example x-user-*";
            reading.report(path.item(index), value, "is not the name of a header field", remedy);
        }
        matched
    });
    matches.collect()
}
