//! What can be told of a message before anybody translates it: fields that are not known, and whether it is as it was.
//!
//! A message is looked at by its descriptor, and so are those that are in it as `Any`. **Hashes go by what is meant**: the order of maps is no difference,
//! nor is that of lists which istiod has in any order.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};
use prost_types::Any;

use crate::unknown_fields::descriptor;

/// Lists whose order says nothing, and is another with each push.
const UNORDERED: [&str; 1] = ["envoy.config.route.v3.RouteMatch.query_parameters"];

/// What a message says, in 32 bytes: two with the same hash say the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Of bytes of which no more is known.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(hash)
    }

    /// Of several things together.
    pub(crate) fn of_several(several: impl Iterator<Item = Self>) -> Self {
        let bytes: Vec<u8> = several.flat_map(|hash| hash.0).collect();
        Self::of_bytes(&bytes)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is told of a message.
#[derive(Clone, Debug)]
pub(crate) struct Inspection {
    pub(crate) hash: ContentHash,
    /// Fields that are not known, as paths with the field's number at their end.
    pub(crate) unknown: Vec<String>,
}

/// Looks at a message that is an `M`.
pub(crate) fn inspect_bytes(name: &str, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let descriptor = descriptor(name).ok_or_else(|| format!("there is no descriptor of {name}"))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|error| error.to_string())
}

pub(crate) fn inspect(message: &DynamicMessage) -> Inspection {
    let mut inspector = Inspector::default();
    let canonical = inspector.message(message, "");
    Inspection {
        hash: ContentHash::of_bytes(&canonical),
        unknown: inspector.unknown,
    }
}

/// The name of the message that an `Any` has.
pub(crate) fn type_name(any: &Any) -> &str {
    any.type_url.rsplit_once('/').map_or(&*any.type_url, |(_, name)| name)
}

/// What an `Any` has in it, if that is known here.
pub(crate) fn unpacked(any: &DynamicMessage) -> Option<DynamicMessage> {
    let any = any.transcode_to::<Any>().ok()?;
    inspect_bytes(type_name(&any), &any.value).ok()
}

pub(crate) fn is_any(message: &DynamicMessage) -> bool {
    message.descriptor().full_name() == "google.protobuf.Any"
}

/// Messages that are in an `Any` which is in another, and so on: what goes deeper is not looked at, and not known. istiod's go to four.
pub(crate) const DEEPEST: usize = 16;

#[derive(Default)]
struct Inspector {
    unknown: Vec<String>,
    depth: usize,
}

/// What is before a value says how long it is: no two messages have the same bytes.
fn framed(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Inspector {
    fn message(&mut self, message: &DynamicMessage, path: &str) -> Vec<u8> {
        if is_any(message) && self.depth >= DEEPEST {
            self.unknown.push(format!("{path} is too deep; it"));
        } else if is_any(message)
            && let Some(inner) = unpacked(message)
        {
            let name = inner.descriptor().full_name().to_owned();
            let mut out = name.clone().into_bytes();
            self.depth += 1;
            let inner = self.message(&inner, &format!("{path}<{name}>"));
            self.depth -= 1;
            framed(&inner, &mut out);
            return out;
        }
        let mut out = Vec::new();
        // What is not known is compared as it came.
        let mut as_it_came = Vec::new();
        for unknown in message.unknown_fields() {
            self.unknown.push(joined(path, &unknown.number().to_string()));
            unknown.encode(&mut as_it_came);
        }
        if !as_it_came.is_empty() {
            framed(&as_it_came, &mut out);
        }
        for (field, value) in message.fields() {
            out.extend_from_slice(&field.number().to_le_bytes());
            let is_unordered = UNORDERED.contains(&field.full_name());
            let value = self.value(value, &joined(path, field.name()), is_unordered);
            framed(&value, &mut out);
        }
        out
    }

    fn value(&mut self, value: &Value, path: &str, is_unordered: bool) -> Vec<u8> {
        let mut out = Vec::new();
        match value {
            Value::Message(message) => return self.message(message, path),
            Value::List(items) => {
                let items = items.iter().enumerate();
                let mut items: Vec<_> = items
                    .map(|(index, item)| self.value(item, &format!("{path}[{index}]"), false))
                    .collect();
                if is_unordered {
                    items.sort();
                }
                items.iter().for_each(|item| framed(item, &mut out));
            }
            Value::Map(entries) => {
                let mut sorted = BTreeMap::new();
                for (key, value) in entries {
                    let key = key_text(key);
                    let value = self.value(value, &format!("{path}[{key}]"), false);
                    sorted.insert(key, value);
                }
                for (key, value) in sorted {
                    framed(key.as_bytes(), &mut out);
                    framed(&value, &mut out);
                }
            }
            Value::Bool(is) => out.push(u8::from(*is)),
            Value::I32(number) | Value::EnumNumber(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::I64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::U32(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::U64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::F32(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::F64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::String(text) => out.extend_from_slice(text.as_bytes()),
            Value::Bytes(bytes) => out.extend_from_slice(bytes),
        }
        out
    }
}

pub(crate) fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        MapKey::Bool(is) => is.to_string(),
        MapKey::I32(number) => number.to_string(),
        MapKey::I64(number) => number.to_string(),
        MapKey::U32(number) => number.to_string(),
        MapKey::U64(number) => number.to_string(),
    }
}

fn joined(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        path => format!("{path}.{field}"),
    }
}
