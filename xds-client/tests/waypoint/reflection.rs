//! Changes messages by the path of a field: `filter_chains[0].filters[0].typed_config.http_filters[1]`. What is in an `Any` is looked through; maps are
//! indexed by their keys.

use prost::Message;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};
use prost_types::Any;
use underpass_xds_client::descriptor;

/// Calls `change` with the message that a path's last field is of, and that field's name.
pub fn edit(message: &mut DynamicMessage, path: &str, change: &mut dyn FnMut(&mut DynamicMessage, &str)) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let mut inner = unpacked(message);
        edit(&mut inner, path, change);
        return repack(message, &inner);
    }
    let (step, rest) = first(path);
    let (name, key) = match step.split_once('[') {
        None => (step, None),
        Some((name, key)) => (name, key.strip_suffix(']')),
    };
    if rest.is_empty() && key.is_none() {
        return change(message, name);
    }
    let field = message.descriptor().get_field_by_name(name);
    let field = field.unwrap_or_else(|| panic!("{} has no field {name}", message.descriptor().full_name()));
    let inner = match (message.get_field_mut(&field), key) {
        (Value::Message(inner), None) => inner,
        (Value::List(items), Some(key)) => items[key.parse::<usize>().unwrap()].as_message_mut().unwrap(),
        (Value::Map(entries), Some(key)) => {
            let entry = entries.get_mut(&MapKey::String(key.to_owned()));
            entry
                .unwrap_or_else(|| panic!("{name} has no {key}"))
                .as_message_mut()
                .unwrap()
        }
        (other, key) => panic!("{name}[{key:?}] is {other:?}"),
    };
    edit(inner, rest, change);
}

/// Sets a field.
pub fn set(message: &mut DynamicMessage, path: &str, value: Value) {
    edit(message, path, &mut |message, name| {
        message.set_field_by_name(name, value.clone())
    });
}

/// Takes a field away.
pub fn clear(message: &mut DynamicMessage, path: &str) {
    edit(message, path, &mut |message, name| message.clear_field_by_name(name));
}

/// Changes a list.
pub fn list(message: &mut DynamicMessage, path: &str, change: impl Fn(&mut Vec<Value>)) {
    edit(message, path, &mut |message, name| {
        let mut items = message.get_field_by_name(name).unwrap().as_list().unwrap().to_vec();
        change(&mut items);
        message.set_field_by_name(name, Value::List(items));
    });
}

/// A message of a type, in an `Any`.
pub fn any(type_name: &str, fill: impl FnOnce(&mut DynamicMessage)) -> Value {
    let mut inner = DynamicMessage::new(descriptor(type_name).unwrap_or_else(|| panic!("there is no {type_name}")));
    fill(&mut inner);
    let mut any = DynamicMessage::new(descriptor("google.protobuf.Any").unwrap());
    repack(&mut any, &inner);
    Value::Message(any)
}

/// An `Any` of a type that nobody knows.
pub fn unknown_any() -> Value {
    let mut any = DynamicMessage::new(descriptor("google.protobuf.Any").unwrap());
    any.set_field_by_name("type_url", Value::String("type.googleapis.com/some.Thing".to_owned()));
    Value::Message(any)
}

/// The message in an `Any`.
pub fn unpacked(any: &DynamicMessage) -> DynamicMessage {
    let any = any.transcode_to::<Any>().unwrap();
    let name = any.type_url.rsplit_once('/').unwrap().1;
    DynamicMessage::decode(descriptor(name).unwrap(), &*any.value).unwrap()
}

/// Puts a message into an `Any`.
pub fn repack(any: &mut DynamicMessage, inner: &DynamicMessage) {
    let url = format!("type.googleapis.com/{}", inner.descriptor().full_name());
    any.set_field_by_name("type_url", Value::String(url));
    any.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
}

/// The first step of a path, and the others. Brackets may have dots in them.
fn first(path: &str) -> (&str, &str) {
    let mut depth = 0;
    for (at, character) in path.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            '.' if depth == 0 => return (&path[..at], &path[at + 1..]),
            _ => {}
        }
    }
    (path, "")
}
