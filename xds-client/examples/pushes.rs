//! What a push costs a waypoint that has many services, in CPU time: everything for the first time, the same again, the same with the parameters of queries in another
//! order, and with one route of one service changed.
//!
//! `cargo run --release -p underpass-xds-client --example pushes [SERVICES]`. The services are copies of one that was recorded, with a chain of HTTP and one of TCP, five
//! clusters and as many sets of endpoints. Of each kind of push the cheapest of several is told, and what part it is of a first load.

use std::fs;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};
use underpass_xds_client::descriptor;
use underpass_xds_client::proto::discovery::{DeltaDiscoveryResponse, Resource};
use underpass_xds_client::waypoint::Held;

/// The service that is copied, and its address.
const SERVICE: &str = "server.shop.svc";
const ADDRESS: &str = "10.96.1.1";
const KINDS: [&str; 3] = ["cds", "eds", "lds"];
const TIMES: usize = 5;

fn recording(kind: &str) -> DeltaDiscoveryResponse {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/05-traffic-management");
    let bytes = fs::read(root.join(format!("waypoint-{kind}.pb"))).expect("a recording");
    DeltaDiscoveryResponse::decode(&*bytes).expect("a response")
}

/// How a message is changed, wherever something is in it.
struct Change<'c> {
    /// What a text becomes.
    text: &'c dyn Fn(&str) -> Option<String>,
    /// Whether parameters of queries come the other way round.
    reverses: bool,
}

impl Change<'_> {
    fn of_message(&self, message: &DynamicMessage) -> DynamicMessage {
        let mut changed = message.clone();
        if message.descriptor().full_name() == "google.protobuf.Any" {
            let any = message.transcode_to::<prost_types::Any>().expect("an Any");
            let inner = descriptor(any.type_url.rsplit('/').next().unwrap_or_default());
            if let Some(inner) = inner.and_then(|inner| DynamicMessage::decode(inner, &*any.value).ok()) {
                let inner = self.of_message(&inner).encode_to_vec();
                changed.set_field_by_name("value", Value::Bytes(inner.into()));
            }
            return changed;
        }
        for (field, value) in message.fields() {
            let mut value = self.of_value(value);
            if let (Value::List(items), true, "query_parameters") = (&mut value, self.reverses, field.name()) {
                items.reverse();
            }
            changed.set_field(&field, value);
        }
        changed
    }

    fn of_value(&self, value: &Value) -> Value {
        match value {
            Value::Message(inner) => Value::Message(self.of_message(inner)),
            Value::List(items) => Value::List(items.iter().map(|item| self.of_value(item)).collect()),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| {
                    let key = match key {
                        MapKey::String(text) => MapKey::String((self.text)(text).unwrap_or_else(|| text.clone())),
                        other => other.clone(),
                    };
                    (key, self.of_value(value))
                });
                Value::Map(entries.collect())
            }
            Value::String(text) => Value::String((self.text)(text).unwrap_or_else(|| text.clone())),
            other => other.clone(),
        }
    }
}

/// A copy of the service, of this number.
fn copied(message: &DynamicMessage, number: usize) -> DynamicMessage {
    let (name, address) = (
        format!("s{number}.shop.svc"),
        format!("10.97.{}.{}", number / 250, number % 250 + 1),
    );
    let text = |text: &str| match text {
        ADDRESS => Some(address.clone()),
        _ => text.contains(SERVICE).then(|| text.replace(SERVICE, &name)),
    };
    let change = Change {
        text: &text,
        reverses: false,
    };
    change.of_message(message)
}

fn decoded(resource: &Resource) -> DynamicMessage {
    let any = resource.resource.as_ref().expect("a resource");
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    DynamicMessage::decode(descriptor(name).expect("a known message"), &*any.value).expect("that message")
}

fn encoded(like: &Resource, name: String, message: &DynamicMessage) -> Resource {
    let mut resource = like.clone();
    resource.name = name;
    resource.resource.as_mut().expect("a resource").value = message.encode_to_vec();
    resource
}

/// Adds copies of what a list has of the service.
fn multiply(list: &mut Vec<Value>, services: usize) {
    let ours = |value: &&Value| format!("{value:?}").contains(SERVICE);
    let ours: Vec<Value> = list.iter().filter(ours).cloned().collect();
    for number in 0..services {
        let copies = ours.iter().filter_map(Value::as_message);
        list.extend(copies.map(|message| Value::Message(copied(message, number))));
    }
}

/// The list that a field is.
fn list_of<'m>(message: &'m mut DynamicMessage, name: &str) -> &'m mut Vec<Value> {
    let field = message.descriptor().get_field_by_name(name).expect("a field");
    message.get_field_mut(&field).as_list_mut().expect("a list")
}

/// A first load, with so many services.
fn load(services: usize) -> Vec<DeltaDiscoveryResponse> {
    let of_kind = |kind| {
        let mut response = recording(kind);
        for resource in &mut response.resources {
            if resource.name != "main_internal" || kind != "lds" {
                continue;
            }
            let mut listener = decoded(resource);
            multiply(list_of(&mut listener, "filter_chains"), services);
            // The matcher of addresses is packed.
            let matcher = ["filter_chain_matcher", "matcher_tree", "custom_match"];
            let mut at = &mut listener;
            for name in matcher {
                let field = at.descriptor().get_field_by_name(name).expect("a field");
                at = at.get_field_mut(&field).as_message_mut().expect("a message");
            }
            let any = at.get_field_by_name("typed_config").expect("a field").into_owned();
            let mut any = any.as_message().expect("an Any").clone();
            let packed = any.transcode_to::<prost_types::Any>().expect("an Any");
            let of = descriptor("xds.type.matcher.v3.IPMatcher").expect("a known message");
            let mut inner = DynamicMessage::decode(of, &*packed.value).expect("that message");
            multiply(list_of(&mut inner, "range_matchers"), services);
            any.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
            at.set_field_by_name("typed_config", Value::Message(any));
            *resource = encoded(resource, resource.name.clone(), &listener);
        }
        let ours: Vec<Resource> = response
            .resources
            .iter()
            .filter(|one| one.name.contains(SERVICE))
            .cloned()
            .collect();
        for number in 0..services {
            let copies = ours.iter().map(|one| {
                let name = one.name.replace(SERVICE, &format!("s{number}.shop.svc"));
                encoded(one, name, &copied(&decoded(one), number))
            });
            response.resources.extend(copies);
        }
        response
    };
    KINDS.map(of_kind).into()
}

/// The same, changed.
fn changed(load: &[DeltaDiscoveryResponse], change: &Change<'_>) -> Vec<DeltaDiscoveryResponse> {
    let mut load = load.to_vec();
    let resources = load.iter_mut().flat_map(|response| &mut response.resources);
    for resource in resources.filter(|resource| resource.name == "main_internal") {
        let message = change.of_message(&decoded(resource));
        *resource = encoded(resource, resource.name.clone(), &message);
    }
    load
}

/// The CPU time that this thread has had.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("a number"))
}

/// What it costs to take a push, and how much of it was translated.
fn take(held: &mut Held, push: &[DeltaDiscoveryResponse]) -> (Duration, usize) {
    let begin = cpu();
    let mut rebuilt = 0;
    for response in push {
        rebuilt += held.take(response).expect("taken").rebuilt.len();
    }
    (cpu().saturating_sub(begin), rebuilt)
}

fn main() {
    let services = std::env::args().nth(1).and_then(|number| number.parse().ok());
    let services = services.unwrap_or(1000);
    let first = load(services);
    let bytes: usize = first.iter().map(Message::encoded_len).sum();
    println!("{services} services, {bytes} bytes");
    let nothing = |_: &str| None;
    let reversed = changed(
        &first,
        &Change {
            text: &nothing,
            reverses: true,
        },
    );
    let one = format!("s{}.shop.svc", services / 2);
    let rename = |text: &str| (text.starts_with(&one)).then(|| format!("{text}x"));
    let one_changed = changed(
        &first,
        &Change {
            text: &rename,
            reverses: false,
        },
    );
    let least = |push: &[DeltaDiscoveryResponse]| {
        let mut held = Held::default();
        take(&mut held, &first);
        let costs = (0..TIMES).map(|_| {
            let cost = take(&mut held, push);
            // Back, so that it is a change each time.
            take(&mut held, &first);
            cost
        });
        costs.min().unwrap_or_default()
    };
    let whole = (0..3)
        .map(|_| take(&mut Held::default(), &first))
        .min()
        .unwrap_or_default();
    for (what, (cost, rebuilt)) in [
        ("first load", whole),
        ("the same again", least(&first)),
        ("parameters in another order", least(&reversed)),
        ("one service changed", least(&one_changed)),
    ] {
        let part = 100.0 * cost.as_secs_f64() / whole.0.as_secs_f64();
        println!(
            "{what}: {:.2} ms, {part:.2} %, {rebuilt} rebuilt",
            cost.as_secs_f64() * 1e3
        );
    }
}
