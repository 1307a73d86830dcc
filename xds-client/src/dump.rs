//! What istiod has sent, kept in a file: to look at it elsewhere, or to serve by it without istiod.
//!
//! One JSON document, with each resource as it came (its protobuf bytes in base64): what is not known here is in it as well, and is as unknown where it is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use thiserror::Error;

use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use crate::resource::ResourceType;

/// The word and number that such a file begins with.
const FORMAT: (&str, u64) = ("underpass_istiod_dump", 1);

/// Why a text is no dump.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadDump {
    /// It is no JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// It is another document.
    #[error("it is not what `underpass config dump` writes: `{}` is not {}", FORMAT.0, FORMAT.1)]
    Format,
    /// A resource is not as it was written.
    #[error("resources[{0}] needs a known `type`, a `name`, a `version` and a `value` in base64")]
    Resource(usize),
}

/// Everything of some types that istiod has sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    resources: BTreeMap<(ResourceType, String), Resource>,
}

impl Dump {
    /// How many resources there are of a type.
    pub fn count(&self, kind: ResourceType) -> usize {
        self.resources.keys().filter(|(known, _)| *known == kind).count()
    }

    /// The same as one response for each of these types, in their order; one without resources, where there are none.
    pub fn responses(&self, types: impl IntoIterator<Item = ResourceType>) -> Vec<DeltaDiscoveryResponse> {
        let of = |kind: ResourceType| DeltaDiscoveryResponse {
            type_url: kind.url().to_owned(),
            resources: (self.resources.iter())
                .filter(|((known, _), _)| *known == kind)
                .map(|(_, resource)| resource.clone())
                .collect(),
            ..Default::default()
        };
        types.into_iter().map(of).collect()
    }

    /// As a file has it.
    pub fn to_json(&self) -> Value {
        let resource = |((kind, name), resource): (&(ResourceType, String), &Resource)| {
            let value = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
            json!({
                "type": kind.to_string(),
                "name": name,
                "version": resource.version,
                "value": STANDARD.encode(value),
            })
        };
        let resources: Vec<Value> = self.resources.iter().map(resource).collect();
        json!({FORMAT.0: FORMAT.1, "resources": resources})
    }

    /// Reads what [`to_json`](Self::to_json) has written.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_json(text: &str) -> Result<Self, BadDump> {
        let document: Value = serde_json::from_str(text).map_err(|error| BadDump::Json(error.to_string()))?;
        if document[FORMAT.0] != FORMAT.1 {
            return Err(BadDump::Format);
        }
        let mut dump = Self::default();
        for (index, value) in document["resources"].as_array().into_iter().flatten().enumerate() {
            let (kind, resource) = read(value).ok_or(BadDump::Resource(index))?;
            dump.resources.insert((kind, resource.name.clone()), resource);
        }
        Ok(dump)
    }

    fn take(&mut self, kind: ResourceType, response: &DeltaDiscoveryResponse) {
        for name in &response.removed_resources {
            self.resources.remove(&(kind, name.clone()));
        }
        for resource in &response.resources {
            self.resources.insert((kind, resource.name.clone()), resource.clone());
        }
    }
}

fn read(value: &Value) -> Option<(ResourceType, Resource)> {
    let text = |field: &str| value[field].as_str();
    let kind = ResourceType::ALL
        .into_iter()
        .find(|kind| text("type") == Some(&kind.to_string()))?;
    let resource = Resource {
        name: text("name")?.to_owned(),
        version: text("version")?.to_owned(),
        resource: Some(prost_types::Any {
            type_url: kind.url().to_owned(),
            value: STANDARD.decode(text("value")?).ok()?,
        }),
        aliases: Vec::new(),
    };
    Some((kind, resource))
}

/// Writes down what a client is sent. It holds everything once more: for who asks istiod to know what it says.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Dump>>);

impl Recorder {
    /// What was sent until now.
    pub fn dump(&self) -> Dump {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, response: &DeltaDiscoveryResponse) {
        if let Some(kind) = ResourceType::of_url(&response.type_url) {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(kind, response);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, value: &[u8]) -> Resource {
        Resource {
            name: name.into(),
            version: "7".into(),
            resource: Some(prost_types::Any {
                type_url: ResourceType::Cluster.url().into(),
                value: value.into(),
            }),
            aliases: Vec::new(),
        }
    }

    #[test]
    fn what_was_sent_last_is_read_as_it_was_written() {
        let recorder = Recorder::default();
        let mut response = DeltaDiscoveryResponse {
            type_url: ResourceType::Cluster.url().into(),
            resources: vec![resource("a", b"\xff\x00"), resource("b", b"b")],
            ..Default::default()
        };
        recorder.note(&response);
        response.resources = vec![resource("b", b"c")];
        response.removed_resources = vec!["a".into()];
        recorder.note(&response);
        let dump = recorder.dump();
        let read = Dump::from_json(&dump.to_json().to_string()).unwrap();
        assert_eq!(read, dump);
        let responses = read.responses([ResourceType::Listener, ResourceType::Cluster]);
        assert!(responses[0].resources.is_empty());
        assert_eq!(responses[1].resources, [resource("b", b"c")]);
    }

    #[test]
    fn another_document_is_refused_by_what_is_wrong_with_it() {
        for (text, expected) in [
            ("a", "it is not JSON"),
            ("{}", "`underpass_istiod_dump` is not 1"),
            (r#"{"underpass_istiod_dump": 2}"#, "`underpass_istiod_dump` is not 1"),
            (
                r#"{"underpass_istiod_dump": 1, "resources": [{"type": "Cluster", "name": "a", "version": "", "value": "!"}]}"#,
                "resources[0] needs",
            ),
            (
                r#"{"underpass_istiod_dump": 1, "resources": [{"type": "Secret", "name": "a", "version": "", "value": ""}]}"#,
                "resources[0] needs",
            ),
        ] {
            let error = Dump::from_json(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
