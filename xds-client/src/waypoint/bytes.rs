//! Resources as the bytes that they come in: what comes as it came before says what it said, and need not be decoded to know that.
//!
//! istiod sends all of a listener when one of its chains has changed, and everything when it is in doubt. So a listener is taken apart by the fields of its wire
//! format, and each chain compared by itself. Where istiod writes a list in any order ([`UNORDERED`](super::inspection)), it is put in one. **Bytes that differ say
//! nothing**: then it is decoded, and what it means is compared ([`ContentHash`]).

use std::collections::BTreeMap;

use prost::encoding::{WireType, decode_key, decode_varint};
use underpass_config::Text;

use super::inspection::ContentHash;

/// `Listener.filter_chains`.
const CHAINS: u32 = 3;
/// `FilterChain.name`.
const NAME: u32 = 7;
/// From a chain to the matches of its routes: `filters`, `typed_config`, `Any.value`, `route_config`, `virtual_hosts`, `routes`, `match`.
const TO_MATCHES: [u32; 7] = [3, 4, 2, 4, 2, 3, 1];
/// How far that is at an `Any`, which has to have this.
const ANY: usize = 2;
const MANAGER: &[u8] = b"/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// `Any.type_url`.
const TYPE: u32 = 1;
/// `RouteMatch.query_parameters`.
const PARAMETERS: u32 = 7;

/// What is around the chains of a listener, in [`Came`].
pub(super) const FRAME: &str = "frame";
/// A chain.
pub(super) const CHAIN: &str = "chain";

/// What things came in when they were taken, by kind and name.
#[derive(Debug, Default)]
pub(super) struct Came(BTreeMap<(&'static str, Text), ContentHash>);

impl Came {
    /// Whether it came in these bytes.
    pub(super) fn is(&self, kind: &'static str, name: &Text, bytes: ContentHash) -> bool {
        self.0.get(&(kind, name.clone())) == Some(&bytes)
    }

    /// It was taken.
    pub(super) fn note(&mut self, kind: &'static str, name: &Text, bytes: ContentHash) {
        self.0.insert((kind, name.clone()), bytes);
    }

    /// It is gone.
    pub(super) fn forget(&mut self, kind: &'static str, name: &Text) {
        self.0.remove(&(kind, name.clone()));
    }

    /// All of a kind are.
    pub(super) fn clear(&mut self, kind: &'static str) {
        self.0.retain(|(of, _), _| *of != kind);
    }
}

/// A field of a message.
struct Field {
    number: u32,
    /// Where it begins, and where it ends.
    whole: (usize, usize),
    /// Where its value does, if that is a message, a text or bytes.
    value: Option<(usize, usize)>,
}

/// The fields of a message; none: they are not such fields.
fn fields(bytes: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let begin = bytes.len() - rest.len();
        let (number, kind) = decode_key(&mut rest).ok()?;
        let length = match kind {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0).ok()?,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            // Nobody writes these any more.
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let at = bytes.len() - rest.len();
        rest = rest.get(length..)?;
        let is_value = kind == WireType::LengthDelimited;
        found.push(Field {
            number,
            whole: (begin, at + length),
            value: is_value.then_some((at, at + length)),
        });
    }
    Some(found)
}

/// A listener that says what is served, in parts.
pub(super) struct Parts<'b> {
    /// What is around its chains, as a listener that has none.
    pub(super) frame: Vec<u8>,
    /// The chains, in their order, by name.
    pub(super) chains: Vec<(Text, &'b [u8])>,
}

impl<'b> Parts<'b> {
    /// Those of a listener; none: it can't be decoded.
    pub(super) fn of(listener: &'b [u8]) -> Option<Self> {
        let (mut frame, mut chains) = (Vec::new(), Vec::new());
        for Field { number, whole, value } in fields(listener)? {
            match value {
                Some((begin, end)) if number == CHAINS => {
                    let chain = &listener[begin..end];
                    chains.push((name(chain)?, chain));
                }
                _ => frame.extend_from_slice(&listener[whole.0..whole.1]),
            }
        }
        Some(Self { frame, chains })
    }
}

/// What a chain is called. Of fields that are there twice the last counts.
fn name(chain: &[u8]) -> Option<Text> {
    let fields = fields(chain)?;
    let named = fields.iter().rev().find(|field| field.number == NAME);
    match named {
        None => Some(Text::from("")),
        Some(field) => str::from_utf8(value_of(chain, field)?).ok().map(Text::from),
    }
}

fn value_of<'b>(message: &'b [u8], field: &Field) -> Option<&'b [u8]> {
    let (begin, end) = field.value?;
    message.get(begin..end)
}

/// The hash of a chain's bytes, which are the same in whatever order parameters of a query are.
pub(super) fn hash_of_chain(chain: &[u8]) -> ContentHash {
    let mut ordered = chain.to_vec();
    // Where it is no such message, nothing is put in order, and who decodes it says so.
    let _ = order(&mut ordered, 0);
    ContentHash::of_bytes(&ordered)
}

/// Puts parameters in order, in a message that is so far on the way to them.
fn order(message: &mut [u8], depth: usize) -> Option<()> {
    let fields = fields(message)?;
    let Some(next) = TO_MATCHES.get(depth) else {
        return order_parameters(message, &fields);
    };
    if depth == ANY {
        let of_type = fields.iter().rev().find(|field| field.number == TYPE)?;
        if !value_of(message, of_type)?.ends_with(MANAGER) {
            return None;
        }
    }
    for field in fields.iter().filter(|field| field.number == *next) {
        let (begin, end) = field.value?;
        // One that has none has nothing to be put in order.
        let _ = order(&mut message[begin..end], depth + 1);
    }
    Some(())
}

/// They stand one behind the other.
fn order_parameters(message: &mut [u8], fields: &[Field]) -> Option<()> {
    for run in fields.chunk_by(|one, next| one.number == next.number) {
        let [first, .., last] = run else { continue };
        if first.number != PARAMETERS {
            continue;
        }
        let mut parts: Vec<Vec<u8>> = run
            .iter()
            .map(|field| message[field.whole.0..field.whole.1].to_vec())
            .collect();
        parts.sort();
        message[first.whole.0..last.whole.1].copy_from_slice(&parts.concat());
    }
    Some(())
}

#[cfg(test)]
mod tests;
