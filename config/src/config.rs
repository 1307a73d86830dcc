//! A configuration: the settings of this node, and the mesh it is in.
//!
//! The one idea: **whole or not at all.** A file is read and checked completely before anything of it counts. An update
//! then takes the mesh that serves now and applies only what differs, so that a workload, service or policy that is
//! written as before is the same object as before, with its balancer's state; and if the file is refused, the
//! configuration it was to replace has not been touched, for it is a value.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::http::Http;
use crate::yaml::Document;
use crate::{ConfigError, Mesh, MeshChange, NodeSettings, Premises, Touched};

/// What one file says. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings of this node.
    pub node: Arc<NodeSettings>,
    /// The mesh.
    pub mesh: Mesh,
    /// What HTTP listeners serve.
    pub http: Arc<Http>,
}

impl Config {
    /// Reads a configuration from a YAML document.
    ///
    /// # Errors
    /// If it is not YAML of the expected shape, or with everything in it that is wrong.
    pub fn from_yaml(yaml: &str) -> Result<Self, ConfigError> {
        Self::from_yaml_given(yaml, &Premises::default())
    }

    /// As [`from_yaml`](Self::from_yaml), with `premises` where the document says nothing.
    ///
    /// # Errors
    /// As [`from_yaml`](Self::from_yaml).
    pub fn from_yaml_given(yaml: &str, premises: &Premises) -> Result<Self, ConfigError> {
        Document::read(yaml, premises).map(Self::from_document)
    }

    /// Reads a configuration from a YAML file.
    ///
    /// # Errors
    /// If the file can't be read, and as [`from_yaml`](Self::from_yaml).
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        // The text is gone before the mesh is built: of a large one, both at once would be the peak of memory.
        let document = {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            Document::read(&text, &Premises::default())?
        };
        Ok(Self::from_document(document))
    }

    fn from_document(document: Document) -> Self {
        let mut mesh = Mesh::default();
        let services = document.services.into_iter().map(MeshChange::Service);
        let policies = document.policies.into_iter().map(MeshChange::Policy);
        let workloads = document.workloads.into_iter().map(MeshChange::Workload);
        mesh.apply(services.chain(policies).chain(workloads));
        Self {
            node: Arc::new(document.node),
            mesh,
            http: Arc::new(document.http),
        }
    }

    /// The configuration that `yaml` says, made from this one: resources that are written as before are the same
    /// objects (`Arc`) with the same balancer state, and [`Touched`] names what open connections may notice. A mesh that
    /// comes from istiod stays as it is.
    ///
    /// # Errors
    /// As [`from_yaml`](Self::from_yaml). This configuration stays as it is in any case.
    pub fn updated(&self, yaml: &str) -> Result<(Self, Touched), ConfigError> {
        self.updated_given(yaml, &Premises::default())
    }

    /// As [`updated`](Self::updated), with `premises` where the document says nothing.
    ///
    /// # Errors
    /// As [`from_yaml`](Self::from_yaml).
    pub fn updated_given(&self, yaml: &str, premises: &Premises) -> Result<(Self, Touched), ConfigError> {
        let mut document = Document::read(yaml, premises)?;
        let node = match *self.node == document.node {
            true => self.node.clone(),
            false => Arc::new(document.node.clone()),
        };
        let http = Arc::new(std::mem::take(&mut document.http).continuing(&self.http));
        let mut mesh = self.mesh.clone();
        let touched = match document.node.istiod {
            Some(_) => Touched::default(),
            None => mesh.apply(differences(&self.mesh, document)),
        };
        Ok((Self { node, mesh, http }, touched))
    }
}

/// What leads from `mesh` to `document`. What goes comes first, so that names and addresses are free when they are taken
/// over.
fn differences(mesh: &Mesh, document: Document) -> Vec<MeshChange> {
    let Document {
        node: _,
        workloads,
        services,
        policies,
        http: _,
    } = document;
    let gone = {
        let uids: HashSet<_, RandomState> = workloads.iter().map(|workload| &workload.uid).collect();
        let services: HashSet<_, RandomState> = services.iter().map(|service| &service.key).collect();
        let policies: HashSet<_, RandomState> = policies.iter().map(|policy| &policy.key).collect();
        let workloads = mesh
            .workloads()
            .map(|workload| &workload.uid)
            .filter(|uid| !uids.contains(uid));
        let services = mesh
            .services()
            .map(|state| &state.service().key)
            .filter(|key| !services.contains(key));
        let policies = mesh
            .policies()
            .map(|policy| &policy.key)
            .filter(|key| !policies.contains(key));
        let workloads = workloads.cloned().map(MeshChange::RemoveWorkload);
        let services = services.cloned().map(MeshChange::RemoveService);
        let policies = policies.cloned().map(MeshChange::RemovePolicy);
        workloads.chain(services).chain(policies).collect::<Vec<_>>()
    };
    let services = services
        .into_iter()
        .filter(|new| mesh.service(&new.key).is_none_or(|old| **old.service() != *new));
    let policies = policies
        .into_iter()
        .filter(|new| mesh.policy(&new.key).is_none_or(|old| **old != *new));
    let workloads = workloads
        .into_iter()
        .filter(|new| mesh.workload(&new.uid).is_none_or(|old| **old != *new));
    let came = services
        .map(MeshChange::Service)
        .chain(policies.map(MeshChange::Policy));
    gone.into_iter()
        .chain(came)
        .chain(workloads.map(MeshChange::Workload))
        .collect()
}
