//! How a trace goes from hop to hop: W3C Trace Context (`traceparent`, `tracestate`), and Zipkin's B3 in one header or in several.
//!
//! W3C's is read as Envoy 1.40's OpenTelemetry tracer reads it; that has no B3, whose rules are those of OpenTelemetry's propagator
//! (openzipkin/b3-propagation).

use http::{HeaderMap, HeaderName, HeaderValue};
use underpass_config::http::Propagation;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What is told of a span to the next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) is_sampled: bool,
    /// What others have noted, which goes on as it came.
    pub(super) state: Vec<u8>,
}

/// A trace that a request came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    /// That of the span that it came from.
    pub(super) context: Context,
    /// That span; none: only whether to trace was told.
    pub(super) parent: Option<[u8; 8]>,
    /// Whether it is traced; none: that is left to us.
    pub(super) is_sampled: Option<bool>,
}

/// What a request came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// No trace.
    Nothing,
    Trace(Trace),
    /// Something that is no trace.
    Garbage,
}

impl Came {
    /// In the first of these words that `headers` have.
    pub(super) fn of(words: &[Propagation], headers: &HeaderMap) -> Self {
        let came = words.iter().map(|words| match words {
            Propagation::W3c => w3c(headers),
            Propagation::B3 => b3(headers),
            Propagation::B3Multi => b3_multi(headers),
        });
        let mut came = came.filter(|came| *came != Self::Nothing);
        came.next().unwrap_or(Self::Nothing)
    }
}

impl Context {
    /// A trace that begins here.
    pub(super) fn fresh(is_sampled: bool) -> Self {
        Self {
            // Zeros would be none.
            trace_id: fastrand::u128(1..).to_be_bytes(),
            span_id: fastrand::u64(1..).to_be_bytes(),
            is_sampled,
            state: Vec::new(),
        }
    }

    /// A span below this one.
    pub(super) fn below(&self, is_sampled: bool) -> Self {
        Self {
            trace_id: self.trace_id,
            span_id: fastrand::u64(1..).to_be_bytes(),
            is_sampled,
            state: self.state.clone(),
        }
    }

    /// Tells the next hop, in the place of what was there.
    pub(super) fn inject(&self, words: &[Propagation], headers: &mut HeaderMap) {
        for words in words {
            match words {
                Propagation::W3c => self.inject_w3c(headers),
                Propagation::B3 => {
                    let mut text = [b'-'; 51];
                    hex(&self.trace_id, &mut text[..32]);
                    hex(&self.span_id, &mut text[33..49]);
                    text[50] = digit(self.is_sampled);
                    set(headers, B3, &text);
                }
                Propagation::B3Multi => self.inject_b3_multi(headers),
            }
        }
    }

    fn inject_w3c(&self, headers: &mut HeaderMap) {
        let mut text = *b"00-................................-................-0.";
        hex(&self.trace_id, &mut text[3..35]);
        hex(&self.span_id, &mut text[36..52]);
        text[54] = digit(self.is_sampled);
        set(headers, TRACEPARENT, &text);
        // One that is empty need not be sent (W3C Trace Context, section 3.3.1.1).
        headers.remove(TRACESTATE);
        if !self.state.is_empty() {
            set(headers, TRACESTATE, &self.state);
        }
    }

    fn inject_b3_multi(&self, headers: &mut HeaderMap) {
        let (mut trace, mut span) = ([0; 32], [0; 16]);
        hex(&self.trace_id, &mut trace);
        hex(&self.span_id, &mut span);
        set(headers, TRACE_ID, &trace);
        set(headers, SPAN_ID, &span);
        set(headers, SAMPLED, &[digit(self.is_sampled)]);
        // They would be another span's.
        headers.remove(PARENT_ID);
        headers.remove(B3_FLAGS);
    }
}

fn digit(is_sampled: bool) -> u8 {
    if is_sampled { b'1' } else { b'0' }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &[u8]) {
    // They are digits, or came as a value.
    if let Ok(value) = HeaderValue::from_bytes(text) {
        headers.insert(name, value);
    }
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// As many bytes as there are pairs of hexadecimal digits.
fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        // Two digits are at most 255.
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(out)
}

/// The same, if it is the id of anything: zeros are not.
fn id<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    bytes(text).filter(|id| id.iter().any(|byte| *byte != 0))
}

fn trace(trace_id: [u8; 16], span_id: [u8; 8], is_sampled: Option<bool>, state: Vec<u8>) -> Came {
    let context = Context {
        trace_id,
        span_id,
        is_sampled: is_sampled.unwrap_or(false),
        state,
    };
    Came::Trace(Trace {
        context,
        parent: Some(span_id),
        is_sampled,
    })
}

/// Whatever the version says, it is read as the first is, and is as long.
fn w3c(headers: &HeaderMap) -> Came {
    let Some(value) = headers.get(TRACEPARENT) else {
        return Came::Nothing;
    };
    let read = || {
        let value: &[u8; 55] = value.as_bytes().try_into().ok()?;
        if [2, 35, 52].iter().any(|at| value[*at] != b'-') {
            return None;
        }
        bytes::<1>(&value[..2])?;
        let [flags] = bytes(&value[53..])?;
        let ids = (id(&value[3..35])?, id(&value[36..52])?);
        Some((ids, flags & 1 == 1))
    };
    let Some(((trace_id, span_id), is_sampled)) = read() else {
        return Came::Garbage;
    };
    let states: Vec<&[u8]> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    trace(trace_id, span_id, Some(is_sampled), states.join(&b","[..]))
}

/// `TRACE-SPAN`, `TRACE-SPAN-SAMPLED`, `TRACE-SPAN-SAMPLED-PARENT`, or only whether to sample.
fn b3(headers: &HeaderMap) -> Came {
    let Some(value) = headers.get(B3) else {
        return Came::Nothing;
    };
    let parts: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b'-').collect();
    let read = || match parts[..] {
        [sampled] => decision(b3_sampled(sampled)?),
        [trace_id, span_id] => Some(trace(b3_trace(trace_id)?, id(span_id)?, None, Vec::new())),
        [trace_id, span_id, sampled] | [trace_id, span_id, sampled, _] => {
            if let Some(parent) = parts.get(3) {
                id::<8>(parent)?;
            }
            let is_sampled = Some(b3_sampled(sampled)?);
            Some(trace(b3_trace(trace_id)?, id(span_id)?, is_sampled, Vec::new()))
        }
        _ => None,
    };
    read().unwrap_or(Came::Garbage)
}

fn b3_multi(headers: &HeaderMap) -> Came {
    let field = |name: &HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    let sampled = match (field(&B3_FLAGS), field(&SAMPLED)) {
        // Debug is a decision, too.
        (Some(b"1"), _) => Some(Some(true)),
        (_, Some(b"1" | b"true")) => Some(Some(true)),
        (_, Some(b"0" | b"false")) => Some(Some(false)),
        (_, None) => Some(None),
        (_, Some(_)) => None,
    };
    let read = |sampled: Option<bool>| match (field(&TRACE_ID), field(&SPAN_ID), sampled) {
        (None, None, Some(is_sampled)) => decision(is_sampled),
        (Some(trace_id), Some(span_id), sampled) => Some(trace(b3_trace(trace_id)?, id(span_id)?, sampled, Vec::new())),
        _ => None,
    };
    match [&TRACE_ID, &SPAN_ID, &SAMPLED, &B3_FLAGS]
        .iter()
        .any(|name| headers.contains_key(*name))
    {
        false => Came::Nothing,
        true => sampled.and_then(read).unwrap_or(Came::Garbage),
    }
}

/// A trace begins here, and it is known whether it is traced.
fn decision(is_sampled: bool) -> Option<Came> {
    Some(Came::Trace(Trace {
        context: Context::fresh(is_sampled),
        parent: None,
        is_sampled: Some(is_sampled),
    }))
}

fn b3_sampled(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// One of eight bytes is one of sixteen that begins with zeros.
fn b3_trace(text: &[u8]) -> Option<[u8; 16]> {
    match text.len() {
        16 => {
            let short: [u8; 8] = id(text)?;
            Some(u128::from(u64::from_be_bytes(short)).to_be_bytes())
        }
        _ => id(text),
    }
}

#[cfg(test)]
mod tests;
