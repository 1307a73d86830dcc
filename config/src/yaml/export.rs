//! How collectors of spans and logs are told: what all their shapes have, in Istio's words (`extensionProviders`), with one of `http.clusters` in the
//! place of a service and its port.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::http::{Http, UpstreamProtocol};
use crate::{Batching, Export, ExportProtocol};

/// `batching:`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BatchingShape<'a> {
    #[serde(borrow)]
    items: Option<Scalar<'a>>,
    interval: Option<Scalar<'a>>,
    pending: Option<Scalar<'a>>,
}

/// `http:` of a collector that is not told by gRPC.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpExportShape<'a> {
    #[serde(borrow)]
    path: Option<Scalar<'a>>,
}

/// What a shape says of how it is told.
pub(super) struct ExportShape<'s, 'a> {
    pub(super) path: Path<'s>,
    pub(super) cluster: &'s Scalar<'a>,
    pub(super) authority: Option<&'s Scalar<'a>>,
    pub(super) timeout: Option<&'s Scalar<'a>>,
    pub(super) headers: &'s BTreeMap<Scalar<'a>, Scalar<'a>>,
    pub(super) http: Option<&'s HttpExportShape<'a>>,
    pub(super) batching: Option<&'s BatchingShape<'a>>,
}

/// More in one message would be longer than servers of gRPC take by default.
const ITEMS: RangeInclusive<u32> = 1..=4096;

impl ExportShape<'_, '_> {
    /// Reads it, with `default` where nothing is said of batches.
    pub(super) fn compile(&self, default: Batching, reading: &mut Reading) -> Export {
        let path = self.path;
        let protocol = match self.http {
            None => ExportProtocol::Grpc,
            Some(http) => ExportProtocol::Http(http.compile(path.field("http"), reading)),
        };
        Export {
            cluster: reading.text(self.cluster),
            protocol,
            authority: self.authority(reading),
            headers: self.headers(path.field("headers"), reading),
            timeout: reading.duration(path.field("timeout"), self.timeout, Export::DEFAULT_TIMEOUT),
            batching: self.batching.map_or(default, |batching| {
                batching.compile(path.field("batching"), default, reading)
            }),
        }
    }

    fn authority(&self, reading: &mut Reading) -> HeaderValue {
        let said = self.authority;
        if let Some(said) = said.filter(|said| Export::host(said).is_none()) {
            let remedy = "write a host, perhaps with a port: collector.observe.svc.cluster.local";
            reading.report(self.path.field("authority"), said, "is not a host", remedy);
        }
        // Names of clusters that are no hosts have a host by which they are asked for nevertheless.
        Export::host(said.unwrap_or(self.cluster)).unwrap_or(Export::ANY_HOST)
    }

    fn headers(&self, path: Path<'_>, reading: &mut Reading) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in self.headers {
            let path = path.key(name);
            let (parsed, sent) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value));
            match (parsed, sent) {
                (Ok(parsed), Ok(sent)) if crate::http::is_editable(&parsed) => headers.push((parsed, sent)),
                _ => {
                    let remedy = "write the name of a header field that frames no message, and a text in one line";
                    reading.report(path, value, "is no header field that can be sent", remedy);
                }
            }
        }
        headers
    }

    /// Reports a cluster that is not there, or can't be spoken with.
    pub(super) fn check(&self, http: &Http, reading: &mut Reading) {
        let path = self.path.field("cluster");
        super::http::check_cluster(path, self.cluster, http, reading);
        let speaks = [UpstreamProtocol::Http2, UpstreamProtocol::Negotiated];
        if let Some(cluster) = http.cluster(self.cluster)
            && self.http.is_none()
            && !speaks.contains(&cluster.settings.protocol)
        {
            let remedy = "write `protocol: http2` in the cluster";
            reading.report(path, self.cluster, "does not speak HTTP/2", remedy);
        }
    }
}

impl HttpExportShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> String {
        let Some(value) = &self.path else {
            return Export::TRACES_PATH.to_owned();
        };
        if !Export::is_path(value) {
            let remedy = "write visible ASCII characters from `/` on: /v1/traces";
            reading.report(path.field("path"), value, "is not a path", remedy);
        }
        value.to_string()
    }
}

impl BatchingShape<'_> {
    fn compile(&self, path: Path<'_>, default: Batching, reading: &mut Reading) -> Batching {
        let items = self.items.as_ref();
        let items = items.and_then(|items| reading.count(path.field("items"), items, ITEMS));
        Batching {
            items: items.unwrap_or(default.items),
            interval: reading.duration(path.field("interval"), self.interval.as_ref(), default.interval),
            pending: reading.bytes(path.field("pending"), self.pending.as_ref(), default.pending),
        }
    }
}
