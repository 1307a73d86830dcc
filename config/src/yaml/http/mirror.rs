//! `mirrors` of a route's `forward`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::reading::{Path, Reading, YES_OR_NO};
use super::super::scalar::Scalar;
use super::balancing::labels;
use super::fault::parts;
use super::forward::check_cluster;
use super::retry::REPLAY;
use crate::http::{Http, Mirror};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MirrorShape<'a> {
    #[serde(borrow)]
    cluster: Scalar<'a>,
    percent: Option<Scalar<'a>>,
    host_suffix: Option<Scalar<'a>>,
    buffer_bytes: Option<Scalar<'a>>,
    #[serde(default)]
    labels: BTreeMap<Scalar<'a>, Scalar<'a>>,
}

impl MirrorShape<'_> {
    pub(super) fn compile(&self, path: Path<'_>, http: &Http, reading: &mut Reading) -> Mirror {
        check_cluster(path.field("cluster"), &self.cluster, http, reading);
        let suffix = path.field("host_suffix");
        let suffix = reading.choice(suffix, self.host_suffix.as_ref(), &YES_OR_NO);
        let buffer = self.buffer_bytes.as_ref();
        let buffer = buffer.and_then(|value| reading.count(path.field("buffer_bytes"), value, REPLAY));
        Mirror {
            cluster: reading.text(&self.cluster),
            labels: labels(&self.labels, reading),
            share: parts(path.field("percent"), self.percent.as_ref(), reading),
            has_host_suffix: suffix.unwrap_or(true),
            buffer: buffer.map_or(Mirror::DEFAULT_BUFFER, |bytes| bytes as usize),
        }
    }
}
