//! The YAML front end: from a document that a person wrote to the model and the node's settings.
//!
//! Two steps. **Shape**: serde reads the document into structs of texts, one module per section, which know the fields
//! and nothing else; an unknown field, a list where a mapping belongs or a broken quotation ends it there. **Compile**:
//! each section turns its texts into values of the model and reports what is none; all problems of all sections come
//! out together. Nothing that has a problem leaves this module.
//!
//! The document may be large (100 000 workloads are 20 MB), so the first reading keeps no track of where it is. Only when
//! there is something to complain about is the document read again, by `locate`, to say where.

mod access_log;
mod capture;
mod export;
mod fallback;
mod hbone;
mod http;
mod identities;
mod istiod;
mod locate;
mod nearest;
mod node;
mod offload;
mod policies;
mod reading;
mod scalar;
mod services;
mod workloads;

use serde::Deserialize;

use crate::http::Http;
use crate::{Authorization, CaptureSettings, ConfigError, NodeSettings, Premises, Problems, Role, Service, Workload};
use capture::CaptureShape;
use http::HttpShape;
use node::NodeShape;
use policies::{Policies, PolicyShape};
pub(crate) use reading::{Path, Reading};
use services::{ServiceShape, Services};
use workloads::{WorkloadShape, Workloads};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentShape<'a> {
    #[serde(borrow, default)]
    node: NodeShape<'a>,
    #[serde(default)]
    workloads: Vec<WorkloadShape<'a>>,
    #[serde(default)]
    services: Vec<ServiceShape<'a>>,
    #[serde(default)]
    authorization_policies: Vec<PolicyShape<'a>>,
    capture: Option<CaptureShape<'a>>,
    #[serde(default)]
    http: HttpShape<'a>,
}

impl DocumentShape<'_> {
    /// The mesh has one source: see [`IstiodSettings`](crate::IstiodSettings).
    fn refuse_a_second_mesh(&self, reading: &mut Reading) {
        let sections = [
            ("workloads", self.workloads.len()),
            ("services", self.services.len()),
            ("authorization_policies", self.authorization_policies.len()),
        ];
        for (section, _) in sections.into_iter().filter(|(_, resources)| *resources > 0) {
            let problem = "the mesh comes from istiod (`node.istiod`), and from nowhere else";
            let remedy = match self.node.names_istiod() {
                true => format!("remove `{section}`, or `node.istiod`"),
                false => format!("remove `{section}`, or unset XDS_ADDRESS and CA_ADDRESS, or use another role"),
            };
            reading.report(Path::Section(section), "", problem, remedy);
        }
    }
}

/// A document that has been understood whole.
pub(crate) struct Document {
    pub(crate) node: NodeSettings,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) services: Vec<Service>,
    pub(crate) policies: Vec<Authorization>,
    pub(crate) http: Http,
}

impl Document {
    /// Reads and checks the whole text. `premises` stand where it says nothing.
    pub(crate) fn read(text: &str, premises: &Premises) -> Result<Self, ConfigError> {
        let malformed = |problem| ConfigError::Malformed(Box::new(problem));
        let shape: Option<DocumentShape<'_>> = serde_saphyr::from_str_with_options(text, options(text))
            .map_err(|error| malformed(locate::malformed(text, error)))?;
        let shape = shape.ok_or_else(|| malformed(locate::empty()))?;
        Self::compile(&shape, premises).map_err(|mut problems| {
            locate::add_positions(text, &mut problems);
            ConfigError::Invalid(problems)
        })
    }

    fn compile(shape: &DocumentShape<'_>, premises: &Premises) -> Result<Self, Problems> {
        let mut reading = Reading::default();
        let mut node = shape.node.compile(premises, &mut reading);
        if node.istiod.is_some() {
            shape.refuse_a_second_mesh(&mut reading);
        }
        if node.waypoint().is_some() && !shape.http.is_empty() {
            let problem = "what a waypoint serves comes from istiod (`node.istiod.waypoint`), and from nowhere else";
            reading.report(
                Path::Section("http"),
                "",
                problem,
                "remove `http`, or `node.istiod.waypoint`",
            );
        }
        let policies = Policies::compile(&shape.authorization_policies, &mut reading);
        let mut workloads = Workloads::compile(&shape.workloads, &node, &policies, &mut reading);
        let services = Services::compile(&shape.services, &node, &mut workloads, &mut reading);
        shape.node.check_destinations(&services, &mut reading);
        let http = shape.http.compile(&mut reading);
        shape.node.check_tables(&http, &mut reading);
        shape.node.check_logs(&http, &mut reading);
        shape.http.check_identities(&node, &mut reading);
        shape.node.check_identities(&node, &mut reading);
        node.capture =
            (shape.capture.as_ref()).map(|capture| capture.compile(node.istiod.is_some(), &workloads, &mut reading));
        if node.role == Role::Node {
            node.capture.get_or_insert_with(CaptureSettings::default);
        }
        if !reading.problems.is_empty() {
            return Err(reading.problems);
        }
        Ok(Self {
            node,
            workloads: workloads.finish(),
            services: services.finish(),
            policies: policies.finish(),
            http,
        })
    }
}

/// How the parser reads `text`. Its limits exist against alias bombs, so they bound what aliases may add to the document:
/// about as much as is written. What is written out is as long as it is.
fn options(text: &str) -> serde_saphyr::Options {
    let written = text.len();
    let aliased = written + FREE_ALIASED_VALUES;
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * written + aliased,
            max_nodes: written + aliased,
            max_total_scalar_bytes: written + FREE_ALIASED_BYTES,
            max_merge_keys: written,
            max_aliases: written,
            max_anchors: written,
            max_recorded_anchor_events: aliased,
            // One anchor for ten thousand aliases is how a locality is written once.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: aliased },
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Values that aliases may add however short the document.
const FREE_ALIASED_VALUES: usize = 100_000;
/// Bytes of text that aliases may add.
const FREE_ALIASED_BYTES: usize = 64 << 20;
