//! `http.clusters[].tls`, `.proxy_protocol` and `.connections`.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::{Scalar, ScalarOr};
use super::matches::{Conditions, condition};
use crate::http::{
    ConnectionSettings, KeyPairFiles, NameKind, NameMatch, Ping, ProxyProtocol, Roots, ServerNames, TcpKeepalive,
    TextMatch, UpstreamTls,
};

pub(super) const PROXY_PROTOCOLS: [(&str, ProxyProtocol); 2] = [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
const NAME_KINDS: [(&str, NameKind); 4] = [
    ("dns", NameKind::Dns),
    ("uri", NameKind::Uri),
    ("ip", NameKind::Ip),
    ("email", NameKind::Email),
];
/// Envoy's range (`max_concurrent_streams`, to 2³¹ − 1) is cut where a window for each is no longer to be had.
const STREAMS: RangeInclusive<u32> = 1..=1000;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsShape<'a> {
    #[serde(borrow)]
    server_name: Option<Scalar<'a>>,
    roots: Option<Scalar<'a>>,
    names: Vec<ScalarOr<'a, NameShape<'a>>>,
    any_name: Option<Scalar<'a>>,
    insecure_skip_verify: Option<Scalar<'a>>,
    certificate: Option<KeyPairShape<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NameShape<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Scalar<'a>>,
    exact: Option<Scalar<'a>>,
    prefix: Option<Scalar<'a>>,
    suffix: Option<Scalar<'a>>,
    contains: Option<Scalar<'a>>,
    regex: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyPairShape<'a> {
    #[serde(borrow)]
    chain: Scalar<'a>,
    key: Scalar<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConnectionsShape<'a> {
    #[serde(borrow)]
    requests: Option<Scalar<'a>>,
    lifetime: Option<Scalar<'a>>,
    streams: Option<Scalar<'a>>,
    idle: Option<Scalar<'a>>,
    ping: Option<PingShape<'a>>,
    keepalive: Option<KeepaliveShape<'a>>,
}

/// What differs from `node.keepalive`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeepaliveShape<'a> {
    #[serde(borrow)]
    time: Option<Scalar<'a>>,
    interval: Option<Scalar<'a>>,
    probes: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PingShape<'a> {
    #[serde(borrow)]
    interval: Scalar<'a>,
    timeout: Option<Scalar<'a>>,
}

impl TlsShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> UpstreamTls {
        let flag = |field, value: &Option<Scalar<'_>>, reading: &mut Reading| {
            let word = reading.choice(path.field(field), value.as_ref(), &YES_OR_NO);
            word.unwrap_or_default()
        };
        let any_name = flag("any_name", &self.any_name, reading);
        let anybody = flag("insecure_skip_verify", &self.insecure_skip_verify, reading);
        self.refuse_contradictions(path, any_name, anybody, reading);
        let names = self.names(path.field("names"), reading);
        let roots = self.roots.as_ref();
        UpstreamTls {
            server_name: reading.hostname(path.field("server_name"), self.server_name.as_ref()),
            roots: match roots.and_then(|file| reading.absolute(path.field("roots"), file)) {
                _ if anybody => Roots::Anybody,
                Some(file) => Roots::File(file),
                None => Roots::System,
            },
            names: match any_name || anybody {
                true => ServerNames::Any,
                false if self.names.is_empty() => ServerNames::Asked,
                false => ServerNames::Matching(names),
            },
            certificate: (self.certificate.as_ref())
                .and_then(|files| files.compile(path.field("certificate"), reading)),
        }
    }

    fn refuse_contradictions(&self, path: Path<'_>, any_name: bool, anybody: bool, reading: &mut Reading) {
        if any_name && !self.names.is_empty() {
            let remedy = "remove `names`, or `any_name`";
            reading.report(path.field("any_name"), "true", "`names` is given too", remedy);
        }
        let checks = self.roots.is_some() || !self.names.is_empty();
        if anybody && checks {
            let remedy = "remove `roots` and `names`, or, better, `insecure_skip_verify`";
            let problem = "says that nothing is verified, but there is what to verify by";
            reading.report(path.field("insecure_skip_verify"), "true", problem, remedy);
        }
    }

    fn names(&self, path: Path<'_>, reading: &mut Reading) -> Vec<NameMatch> {
        let names = self.names.iter().enumerate();
        names
            .filter_map(|(index, shape)| match shape {
                ScalarOr::Scalar(exact) => Some(NameMatch {
                    kind: None,
                    text: TextMatch::Exact(exact.to_string()),
                }),
                ScalarOr::Mapping(shape) => shape.compile(path.item(index), reading),
            })
            .collect()
    }
}

impl NameShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<NameMatch> {
        let given = Conditions {
            exact: self.exact.as_ref(),
            prefix: self.prefix.as_ref(),
            suffix: self.suffix.as_ref(),
            contains: self.contains.as_ref(),
            regex: self.regex.as_ref(),
        };
        // Each certificate's names have nothing in them.
        for (field, value) in [
            ("exact", &self.exact),
            ("prefix", &self.prefix),
            ("suffix", &self.suffix),
            ("contains", &self.contains),
            ("regex", &self.regex),
        ] {
            if let Some(value) = value.as_ref().filter(|value| value.is_empty()) {
                let remedy =
                    "write what the name has to have, or, if any will do, `any_name: true` in place of `names`";
                reading.report(
                    path.field(field),
                    value,
                    "is empty, so that it verifies nothing",
                    remedy,
                );
            }
        }
        let text = condition(path, given, reading);
        Some(NameMatch {
            kind: reading.choice(path.field("type"), self.kind.as_ref(), &NAME_KINDS),
            text: text?,
        })
    }
}

impl KeyPairShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> Option<KeyPairFiles> {
        let chain = reading.absolute(path.field("chain"), &self.chain);
        let key = reading.absolute(path.field("key"), &self.key);
        Some(KeyPairFiles {
            chain: chain?,
            key: key?,
        })
    }
}

impl ConnectionsShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, reading: &mut Reading) -> ConnectionSettings {
        let default = ConnectionSettings::default();
        let count = |field, value: &Option<Scalar<'_>>, range, default, reading: &mut Reading| {
            let value = value.as_ref();
            value
                .and_then(|value| reading.count(path.field(field), value, range))
                .unwrap_or(default)
        };
        ConnectionSettings {
            requests: count("requests", &self.requests, 1..=u32::MAX, default.requests, reading),
            streams: count("streams", &self.streams, STREAMS, default.streams, reading),
            idle: count("idle", &self.idle, 0..=u32::MAX, default.idle, reading),
            lifetime: (self.lifetime.as_ref())
                .map(|value| reading.duration(path.field("lifetime"), Some(value), Ping::TIMEOUT)),
            ping: self.ping.as_ref().map(|shape| {
                let path = path.field("ping");
                Ping {
                    interval: reading.duration(path.field("interval"), Some(&shape.interval), Ping::TIMEOUT),
                    timeout: reading.duration(path.field("timeout"), shape.timeout.as_ref(), Ping::TIMEOUT),
                }
            }),
            keepalive: (self.keepalive.as_ref()).map(|shape| shape.compile(path.field("keepalive"), reading)),
        }
    }
}

impl KeepaliveShape<'_> {
    fn compile(&self, path: Path<'_>, reading: &mut Reading) -> TcpKeepalive {
        let mut seconds = |field, value: &Option<Scalar<'_>>| {
            let value = value.as_ref()?;
            let time = reading.duration(path.field(field), Some(value), Ping::TIMEOUT);
            let keepalive = TcpKeepalive {
                time: Some(time),
                ..TcpKeepalive::default()
            };
            if !keepalive.is_possible() {
                let remedy = "the kernel takes whole seconds from 1s to 32767s";
                reading.report(path.field(field), value, "is not possible for keepalive", remedy);
            }
            Some(time)
        };
        let (time, interval) = (seconds("time", &self.time), seconds("interval", &self.interval));
        TcpKeepalive {
            time,
            interval,
            probes: (self.probes.as_ref()).and_then(|probes| reading.count(path.field("probes"), probes, 1..=127)),
        }
    }
}
