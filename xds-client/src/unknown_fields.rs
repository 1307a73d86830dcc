//! Whether a message has fields that our `.proto` does not know. prost drops them in silence, which for a policy could
//! drop a condition; so policies are decoded a second time, by descriptor, and asked.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, Value};

use crate::proto::DESCRIPTORS;

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());

/// The descriptor of one of our messages.
pub fn descriptor(message: &str) -> Option<MessageDescriptor> {
    POOL.as_ref()?.get_message_by_name(message)
}

/// The first field of `message` that is not known, as a path with the field's number at its end; or why that can't be
/// told.
pub(crate) fn first_unknown(message: &str, bytes: &[u8]) -> Result<Option<String>, String> {
    let descriptor = descriptor(message).ok_or_else(|| format!("no descriptor of {message}"))?;
    let decoded = DynamicMessage::decode(descriptor, bytes).map_err(|error| error.to_string())?;
    Ok(in_message(&decoded))
}

fn in_message(message: &DynamicMessage) -> Option<String> {
    if let Some(unknown) = message.unknown_fields().next() {
        return Some(unknown.number().to_string());
    }
    message
        .fields()
        .find_map(|(field, value)| Some(format!("{}.{}", field.name(), in_value(value)?)))
}

fn in_value(value: &Value) -> Option<String> {
    match value {
        Value::Message(message) => in_message(message),
        Value::List(values) => values.iter().find_map(in_value),
        Value::Map(entries) => entries
            .iter()
            .find_map(|(key, value): (&MapKey, &Value)| Some(format!("{key:?}.{}", in_value(value)?))),
        _ => None,
    }
}

/// The descriptors of all messages.
pub(crate) fn messages() -> impl Iterator<Item = MessageDescriptor> {
    POOL.as_ref().into_iter().flat_map(DescriptorPool::all_messages)
}
