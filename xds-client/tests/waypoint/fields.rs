//! Not a field that was recorded is overlooked: each is changed wherever it is set, and then something is served otherwise, or refused; or it is listed,
//! with the reason, and nothing is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};
use underpass_xds_client::descriptor;
use underpass_xds_client::waypoint::Held;
use underpass_xds_client::waypoint::fields::{Becomes, LISTED, of, table};

use crate::reflection::{repack, unpacked};
use crate::{SCENARIOS, TYPES, decoded, recording, response};

/// What is served, as text.
fn outcome(kind: &str, name: &str, message: &DynamicMessage) -> String {
    let mut held = Held::default();
    held.take(&response(kind, name, message)).unwrap();
    let mut text = format!("{:?} {:?} {:?}", held.unlike, held.closed, held.place);
    for (name, kept) in &held.chains {
        text += &format!("{name} {:?} {:?}", kept.served, kept.left_out);
    }
    for (name, kept) in &held.clusters {
        text += &format!("{name} {:?} {:?}", kept.served, kept.left_out);
    }
    for (name, kept) in &held.endpoints {
        text += &format!("{name} {:?} {:?}", kept.served, kept.left_out);
    }
    text
}

/// The resources of a recording in parts: the listener that says what is served is one for each chain, and one for what leads to them.
fn parts(kind: &str, name: &str, whole: DynamicMessage) -> Vec<DynamicMessage> {
    if (kind, name) != ("lds", "main_internal") {
        return vec![whole];
    }
    let chains = whole
        .get_field_by_name("filter_chains")
        .unwrap()
        .as_list()
        .unwrap()
        .to_vec();
    let mut frame = whole;
    frame.clear_field_by_name("filter_chains");
    let mut parts: Vec<_> = chains
        .into_iter()
        .map(|chain| {
            let mut part = frame.clone();
            part.clear_field_by_name("filter_chain_matcher");
            part.set_field_by_name("filter_chains", Value::List(vec![chain]));
            part
        })
        .collect();
    parts.push(frame);
    parts
}

/// Fields that make a difference only where something else is said, too.
const DEPENDING: [(&str, &str); 4] = [
    (
        "envoy.config.endpoint.v3.LocalityLbEndpoints.load_balancing_weight",
        "where localities are weighed",
    ),
    ("stats.PluginConfig.tcp_reporting_duration", "of connections"),
    (
        "envoy.config.core.v3.Metadata.filter_metadata[istio.workload]",
        "of endpoints that are names nothing is told by it: DNS has their addresses, and the mesh knows whose they are",
    ),
    (
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds.max_retries",
        "where there is no budget",
    ),
];

/// Messages that say nothing if nothing is in them, as if they were not there.
const EMPTY_IS_NONE: [&str; 2] = [
    "envoy.config.core.v3.Locality",
    "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
];

/// Fields, and whether changing them made a difference. An enumeration's other values need not all: one is enough.
fn made_a_difference(
    variants: Vec<(String, DynamicMessage)>,
    differs: impl Fn(&DynamicMessage) -> bool,
) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut enumerations: BTreeMap<String, bool> = BTreeMap::new();
    for (name, changed) in variants {
        let differs = differs(&changed);
        match name.contains('#') {
            false => found.push((name, differs)),
            true => *enumerations.entry(name).or_default() |= differs,
        }
    }
    let enumerations = enumerations.into_iter();
    found.extend(enumerations.map(|(name, differs)| (name.split_once('#').unwrap().0.to_owned(), differs)));
    found
}

#[test]
fn every_recorded_field_is_used_or_listed() {
    let mut walk = Walk::default();
    // By field: where it was wrong.
    let mut wrong: BTreeMap<(String, bool), String> = BTreeMap::new();
    let (mut seen, mut matters) = (BTreeSet::new(), BTreeSet::new());
    // What is alike is changed once: first where spans are told of.
    let (told, others): (Vec<_>, Vec<_>) = SCENARIOS.iter().partition(|scenario| **scenario == "10-telemetry");
    for scenario in told.into_iter().chain(others) {
        for (_, kind) in TYPES {
            for resource in recording(scenario, kind).resources {
                let name = resource.name.clone();
                let is_wiring = !name.contains('|') && name != "main_internal";
                let is_wiring = is_wiring || (kind == "cds" && name == "main_internal");
                for part in parts(kind, &name, decoded(&resource)) {
                    let expected = outcome(kind, &name, &part);
                    walk.context = vec![format!("{kind} {}", if is_wiring { &name } else { "" })];
                    for (field, differs) in made_a_difference(walk.variants(&part), |changed| {
                        outcome(kind, &name, changed) != expected
                    }) {
                        let is_used = of(&field).0 == Becomes::Used;
                        // What is only wiring is compared with what is known, but for what may say anything there.
                        let depends = DEPENDING.iter().any(|(listed, _)| *listed == field);
                        let is_right = match is_wiring {
                            true => differs || is_free(&field),
                            false => differs == is_used || depends,
                        };
                        if !is_right {
                            wrong
                                .entry((field.clone(), differs))
                                .or_insert_with(|| format!("{scenario} {kind} {name}"));
                        }
                        if !is_wiring && differs {
                            matters.insert(field.clone());
                        }
                        seen.insert(field);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "(field, whether it makes a difference): {wrong:#?}");
    for (depending, when) in DEPENDING {
        assert!(
            matters.contains(depending),
            "{depending} makes no difference anywhere: {when}"
        );
    }
    for listed in LISTED {
        let recorded = |seen: &String| match listed.field.strip_suffix('*') {
            Some(message) => seen.starts_with(message),
            None => seen == listed.field,
        };
        assert!(
            seen.iter().any(recorded),
            "{} is listed, and was not recorded",
            listed.field
        );
    }
    assert!(seen.len() >= 289, "{} fields", seen.len());
}

/// What wiring may say without being another: how it is logged, and whose certificates are taken.
fn is_free(field: &str) -> bool {
    [
        "envoy.config.accesslog.",
        "envoy.extensions.access_loggers.",
        "opentelemetry.",
        "envoy.config.core.v3.SubstitutionFormatString.json_format",
        "envoy.config.core.v3.GrpcService.EnvoyGrpc.",
        "envoy.config.core.v3.RuntimeUInt32.",
        "envoy.config.listener.v3.Listener.access_log",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.access_log",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.access_log",
        "envoy.config.core.v3.HeaderValue.value",
        "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher.",
        "envoy.type.matcher.v3.StringMatcher.prefix",
    ]
    .iter()
    .any(|free| field.starts_with(free))
}

#[test]
fn the_table_of_fields_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/waypoint-fields.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, table()).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == table(),
        "run it with UPDATE=1, and look at what has changed in {}",
        file.display()
    );
}

/// Goes through messages; what was changed at one place is not changed again at another that is alike.
#[derive(Default)]
struct Walk {
    done: HashSet<(Vec<String>, Vec<u8>)>,
    context: Vec<String>,
    enumerations: usize,
}

impl Walk {
    /// The message with one field changed, for each field that is set anywhere in it, with that field's name.
    fn variants(&mut self, message: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
        if !self.done.insert((self.context.clone(), message.encode_to_vec())) {
            return Vec::new();
        }
        if message.descriptor().full_name() == "google.protobuf.Any" {
            return self.in_any(message);
        }
        let mut found = Vec::new();
        let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
        for field in fields {
            self.context.push(field.full_name().to_owned());
            for (name, value) in self.of_value(message.get_field(&field).as_ref(), &field) {
                let mut changed = message.clone();
                match value {
                    Some(value) => changed.set_field(&field, value),
                    None => changed.clear_field(&field),
                }
                // What is in a field that is listed goes by its name.
                let is_listed = of(field.full_name()).0 != Becomes::Used;
                let name = name
                    .filter(|_| !is_listed)
                    .unwrap_or_else(|| field.full_name().to_owned());
                found.push((name, changed));
            }
            self.context.pop();
        }
        found
    }

    fn in_any(&mut self, any: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
        let url = any.get_field_by_name("type_url").unwrap().as_str().unwrap().to_owned();
        let known = descriptor(url.rsplit_once('/').unwrap().1);
        assert!(known.is_some(), "{url} is not known");
        let inner = unpacked(any);
        self.context.push(url);
        let mut found: Vec<_> = self
            .variants(&inner)
            .into_iter()
            .map(|(name, changed)| {
                let mut packed = any.clone();
                repack(&mut packed, &changed);
                (name, packed)
            })
            .collect();
        self.context.pop();
        // Another type with the same content is another thing.
        let mut other = any.clone();
        other.set_field_by_name("type_url", Value::String("type.googleapis.com/some.Thing".to_owned()));
        found.push((self.context.last().unwrap().clone(), other));
        found
    }

    /// What may stand in the place of a value; none: nothing. By the name of the field that is changed, if that is another.
    fn of_value(&mut self, value: &Value, field: &FieldDescriptor) -> Vec<(Option<String>, Option<Value>)> {
        let plain = |value| vec![(None, Some(value))];
        match value {
            Value::Message(message) if message.descriptor().full_name() == "google.protobuf.Struct" => {
                in_struct(message)
                    .into_iter()
                    .map(|(keys, changed)| {
                        (
                            Some(format!("{}[{keys}]", field.full_name())),
                            Some(Value::Message(changed)),
                        )
                    })
                    .collect()
            }
            Value::Message(message) if is_scalar(message) && message.fields().next().is_none() => {
                other_than_default(message)
                    .map(|other| (None, other))
                    .into_iter()
                    .collect()
            }
            // None is as one that says nothing.
            Value::Message(message)
                if message.fields().next().is_none() && EMPTY_IS_NONE.contains(&message.descriptor().full_name()) =>
            {
                Vec::new()
            }
            Value::Message(message) if is_left_out(message) => Vec::new(),
            // Only its presence says anything.
            Value::Message(message) if message.fields().next().is_none() => vec![(None, None)],
            Value::Message(message) if is_scalar(message) => {
                let changed = self.variants(message);
                changed
                    .into_iter()
                    .map(|(_, changed)| (None, Some(Value::Message(changed))))
                    .collect()
            }
            Value::Message(message) => {
                let changed = self.variants(message);
                changed
                    .into_iter()
                    .map(|(name, changed)| (Some(name), Some(Value::Message(changed))))
                    .collect()
            }
            Value::List(items) => {
                let mut found = Vec::new();
                for position in 0..items.len() {
                    let changed = match &items[position] {
                        Value::Message(message) if message.fields().next().is_none() || is_left_out(message) => {
                            Vec::new()
                        }
                        item => self.of_value(item, field),
                    };
                    for (name, changed) in changed {
                        let mut list = items.clone();
                        match changed {
                            Some(changed) => list[position] = changed,
                            None => drop(list.remove(position)),
                        }
                        found.push((name, Some(Value::List(list))));
                    }
                }
                found
            }
            Value::Map(entries) => {
                let mut found = Vec::new();
                for (key, value) in entries {
                    let MapKey::String(text) = key else { panic!("{key:?}") };
                    let mut renamed = entries.clone();
                    renamed.remove(key);
                    renamed.insert(MapKey::String(format!("{text}x")), value.clone());
                    let is_struct = matches!(value, Value::Message(inner) if inner.descriptor().full_name() == "google.protobuf.Struct");
                    if !is_struct {
                        found.push((None, Some(Value::Map(renamed))));
                    }
                    for (name, changed) in self.of_value(value, field) {
                        let Some(changed) = changed else { continue };
                        let name = match name {
                            Some(name) if is_struct => {
                                let keys = name.rsplit_once('[').unwrap().1;
                                Some(format!("{}[{text}.{keys}", field.full_name()))
                            }
                            name => name,
                        };
                        let mut with = entries.clone();
                        with.insert(key.clone(), changed);
                        found.push((name, Some(Value::Map(with))));
                    }
                }
                found
            }
            Value::String(text) => plain(Value::String(format!("{text}x"))),
            Value::Bool(set) => plain(Value::Bool(!set)),
            Value::U32(number) => plain(Value::U32(if *number >= 100 { number - 1 } else { number + 1 })),
            Value::I32(number) => plain(Value::I32(number + 1)),
            Value::U64(number) => plain(Value::U64(number + 1)),
            Value::I64(number) => plain(Value::I64(number + 1)),
            Value::F64(number) => plain(Value::F64(if *number >= 100.0 { number - 1.0 } else { number + 1.0 })),
            Value::Bytes(bytes) => {
                let mut bytes = bytes.to_vec();
                bytes[0] ^= 1;
                plain(Value::Bytes(bytes.into()))
            }
            Value::EnumNumber(number) => {
                let Kind::Enum(descriptor) = field.kind() else {
                    panic!("{field:?}")
                };
                let numbers = descriptor.values().map(|value| value.number());
                let others = numbers.filter(|other| other != number);
                self.enumerations += 1;
                let name = format!("{}#{}", field.full_name(), self.enumerations);
                others
                    .map(|other| (Some(name.clone()), Some(Value::EnumNumber(other))))
                    .collect()
            }
            other => panic!("{} has a {other:?}, which no recording had", field.full_name()),
        }
    }
}

/// What is not looked into, because nothing comes of it whatever it says: the mutual TLS of sidecars, and spans that nobody is told of.
fn is_left_out(message: &DynamicMessage) -> bool {
    match message.descriptor().full_name() {
        "envoy.config.cluster.v3.Cluster.TransportSocketMatch" => {
            message.get_field_by_name("name").unwrap().as_str() == Some("tlsMode-istio")
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing" => {
            !message.has_field_by_name("provider")
        }
        _ => false,
    }
}

/// Messages that stand for one value: the field that has them is what is named.
fn is_scalar(message: &DynamicMessage) -> bool {
    let descriptor = message.descriptor();
    descriptor.full_name().starts_with("google.protobuf.") && descriptor.full_name() != "google.protobuf.Any"
}

/// Another value than the one that needs no words; none: there is only one.
fn other_than_default(message: &DynamicMessage) -> Option<Option<Value>> {
    let Some(field) = message.descriptor().fields().next() else {
        return Some(None);
    };
    let value = match field.kind() {
        Kind::Bool => Value::Bool(true),
        Kind::Uint32 => Value::U32(1),
        Kind::Uint64 => Value::U64(1),
        Kind::Int64 => Value::I64(1),
        Kind::Double => Value::F64(1.0),
        Kind::String => Value::String("x".to_owned()),
        other => panic!("{other:?}"),
    };
    let mut message = message.clone();
    message.set_field(&field, value);
    Some(Some(Value::Message(message)))
}

/// A struct with one value changed, for each, with the names that lead to it.
fn in_struct(message: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let fields = message.get_field_by_name("fields").unwrap().as_map().unwrap().clone();
    let mut found = Vec::new();
    for (key, value) in &fields {
        let MapKey::String(text) = key else { panic!("{key:?}") };
        for (keys, changed) in in_struct_value(value.as_message().unwrap()) {
            let mut with = fields.clone();
            with.insert(key.clone(), Value::Message(changed));
            let mut message = message.clone();
            message.set_field_by_name("fields", Value::Map(with));
            found.push((join(text, &keys), message));
        }
    }
    found
}

fn join(name: &str, rest: &str) -> String {
    match rest {
        "" => name.to_owned(),
        rest => format!("{name}.{rest}"),
    }
}

fn in_struct_value(value: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let with = |field: &str, inner: Value| {
        let mut changed = value.clone();
        changed.set_field_by_name(field, inner);
        changed
    };
    let (field, inner) = value.fields().next().unwrap();
    match inner {
        Value::String(text) => vec![(String::new(), with(field.name(), Value::String(format!("{text}x"))))],
        Value::Bool(set) => vec![(String::new(), with(field.name(), Value::Bool(!set)))],
        Value::F64(number) => vec![(String::new(), with(field.name(), Value::F64(number + 1.0)))],
        Value::Message(inner) if inner.descriptor().full_name() == "google.protobuf.Struct" => in_struct(inner)
            .into_iter()
            .map(|(keys, changed)| (keys, with(field.name(), Value::Message(changed))))
            .collect(),
        Value::Message(list) => {
            let items = list.get_field_by_name("values").unwrap().as_list().unwrap().to_vec();
            let mut found = Vec::new();
            for (position, item) in items.iter().enumerate() {
                for (keys, changed) in in_struct_value(item.as_message().unwrap()) {
                    let mut items = items.clone();
                    items[position] = Value::Message(changed);
                    let mut list = list.clone();
                    list.set_field_by_name("values", Value::List(items));
                    found.push((keys, with(field.name(), Value::Message(list))));
                }
            }
            found
        }
        other => panic!("{other:?}"),
    }
}
